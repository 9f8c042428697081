"""The bucket of failures against what its two numbers promise."""

from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.web.attempts import FAILURES_BURST, FAILURES_PER_S, FailedAttempts

STEPS = st.lists(
    st.tuples(st.sampled_from(["a", "b"]), st.sampled_from([0.0, 0.0, 0.01, 0.5, 3.0, 100.0])),
    max_size=400,
)


@given(STEPS)
def test_no_address_is_answered_more_than_it_may(steps: list[tuple[str, float]]) -> None:
    """In any stretch of time at most a burst and what trickles in meanwhile is answered."""
    attempts, now_s = FailedAttempts(), 0.0
    answered: dict[str, list[float]] = {"a": [], "b": []}
    for address, pause_s in steps:
        now_s += pause_s
        if attempts.wait_s(address, now_s) == 0:
            answered[address].append(now_s)

    for times in answered.values():
        for first, start_s in enumerate(times):
            for last in range(first, len(times)):
                span_s = times[last] - start_s
                allowed = FAILURES_BURST + span_s * FAILURES_PER_S
                assert last - first + 1 <= allowed + 1e-6


@given(STEPS)
def test_who_waits_as_told_is_answered(steps: list[tuple[str, float]]) -> None:
    attempts, now_s = FailedAttempts(), 0.0
    for address, pause_s in steps:
        now_s += pause_s
        wait_s = attempts.wait_s(address, now_s)
        if wait_s > 0:
            now_s += wait_s
            assert 0 == attempts.wait_s(address, now_s)
