"""The specified backoff: `first * 2^n + jitter`, at most the ceiling, a bounded number of times."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.kernel.backoff import Backoff


def test_the_specified_waits_without_jitter() -> None:
    backoff = Backoff()

    assert 5 == backoff.retries
    assert [10, 20, 40, 80, 160] == [backoff.wait_ms(attempt, 0.0) for attempt in range(5)]


def test_jitter_adds_at_most_one_first_step() -> None:
    assert (10, 15) == (Backoff().wait_ms(0, 0.0), Backoff().wait_ms(0, 0.5))


@given(st.integers(0, 200), st.floats(0, 1, exclude_max=True))
def test_no_wait_is_negative_or_above_the_ceiling(attempt: int, jitter: float) -> None:
    assert 10 <= Backoff().wait_ms(attempt, jitter) <= 2_000


@given(st.integers(0, 20), st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
def test_a_later_attempt_never_waits_shorter(attempt: int, one: float, other: float) -> None:
    backoff = Backoff(ceiling_ms=10**9)

    assert backoff.wait_ms(attempt, one) <= backoff.wait_ms(attempt + 1, other)


@pytest.mark.parametrize(
    ("first_ms", "ceiling_ms", "retries"), [(0, 10, 1), (-1, 10, 1), (10, 9, 1), (10, 10, -1)]
)
def test_a_backoff_that_makes_no_sense_is_refused(
    first_ms: float, ceiling_ms: float, retries: int
) -> None:
    with pytest.raises(ValueError, match="first_ms"):
        Backoff(first_ms=first_ms, ceiling_ms=ceiling_ms, retries=retries)
