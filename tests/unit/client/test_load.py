"""Percentiles, the closed loop, and what a tally and an audit say."""

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.client.load import Audit, Latencies, Quantiles, run_closed_loop
from tollkeeper.client.messages import Fault
from tollkeeper.client.summary import audit_facts, quantiles_text

CLEAN = Audit(accounts=2, transactions=5, topped_up=10, consumed=4, balances=6, faults=())


def quantiles_of(*seconds: float) -> Quantiles | None:
    latencies = Latencies()
    for each in seconds:
        latencies.add(each)
    return latencies.quantiles()


def test_nothing_measured_has_no_percentiles() -> None:
    assert quantiles_of() is None
    assert quantiles_text(None) == "nothing measured"


def test_percentiles_are_values_that_were_measured() -> None:
    found = quantiles_of(*(n / 1_000 for n in range(1, 201)))

    assert found == Quantiles(p50_ms=100.0, p95_ms=190.0, p99_ms=198.0, max_ms=200.0)


@given(seconds=st.lists(st.floats(min_value=0, max_value=1e3), min_size=1, max_size=200))
def test_so_many_in_a_hundred_are_at_most_the_percentile(seconds: list[float]) -> None:
    found = quantiles_of(*seconds)

    assert found is not None
    within = sum(round(each * 1_000, 3) <= found.p95_ms for each in seconds)
    assert within >= math.ceil(0.95 * len(seconds))
    assert found.p50_ms <= found.p95_ms <= found.p99_ms <= found.max_ms
    assert found.max_ms == round(max(seconds) * 1_000, 3)


async def test_the_loop_does_every_job_once_and_keeps_all_workers_busy() -> None:
    barrier = asyncio.Barrier(3)
    done: list[int] = []

    async def work(job: int) -> None:
        # Passes only when three are under way at once.
        await barrier.wait()
        done.append(job)

    await run_closed_loop(iter(range(30)), work, workers=3)

    assert sorted(done) == list(range(30))


async def test_the_first_error_ends_the_loop_and_is_raised_as_it_is() -> None:
    never = asyncio.Event()

    async def work(job: int) -> None:
        if job == 2:
            raise LookupError
        await never.wait()

    with pytest.raises(LookupError):
        await run_closed_loop(iter(range(100)), work, workers=3)


def test_an_audit_says_what_is_wrong() -> None:
    lost = Audit(accounts=2, transactions=5, topped_up=10, consumed=4, balances=5, faults=())
    fault = Fault(account_id="a", sequence=1, fault="hash", detail="x")
    edited = Audit(
        accounts=2, transactions=5, topped_up=10, consumed=4, balances=6, faults=(fault,)
    )

    assert CLEAN.is_clean
    assert not lost.is_clean
    assert not edited.is_clean
    assert ("conservation", "balances 6 + consumed 4 = topped up", "good") in audit_facts(CLEAN)
    assert [("topped up",), ("conservation", "bad"), ("chain", "good")] == tones_of(lost)
    assert [("topped up",), ("conservation", "good"), ("chain", "bad")] == tones_of(edited)


def tones_of(audit: Audit) -> list[tuple[str, ...]]:
    return [(name, *tone) for name, _, *tone in audit_facts(audit)]
