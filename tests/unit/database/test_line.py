"""The line's edges that no pool is needed for."""

import asyncio
from typing import Any, cast

from tests.clocks import SetClock

from tollkeeper.database.errors import PoolClosed, PoolTimeout
from tollkeeper.database.line import EVIDENCE, Line
from tollkeeper.database.slot import Slot


def line_of(clock: SetClock) -> Line:
    return Line(
        clock=clock,
        timeout_s=5.0,
        max_waiting=1_000,
        give_back=lambda _: None,
        timed_out=lambda waited_s: PoolTimeout(waited_s=waited_s, size=1),
    )


async def test_deadline_that_passes_as_its_caller_is_cancelled_counts_for_nothing() -> None:
    line = line_of(SetClock())
    waiter = line.join(5.0)

    waiter.cancel()
    line._expire(waiter, 5.0)

    assert 0 == line.timeouts_total


async def test_how_fast_a_former_line_moved_is_forgotten_with_it() -> None:
    """An outage ended it; those who come afterwards are not refused for its sake."""
    clock = SetClock()
    line = line_of(clock)
    for _ in range(20):
        line.join(5.0)
    for _ in range(EVIDENCE):
        line.note_return(clock.monotonic_s())
    line.refuse_all(PoolClosed)
    clock.advance(60.0)

    waiters = [line.join(5.0) for _ in range(100)]

    assert 0 == line.refused_total
    assert len(waiters) == len(line)


async def test_cancelled_caller_is_passed_over() -> None:
    line = line_of(SetClock())
    first, second = line.join(5.0), line.join(5.0)
    first.cancel()
    slot = Slot(cast("Any", None), generation=1, expires_s=0.0)

    assert [False, True] == [line.serve(slot), line.serve(slot)]
    assert slot is await asyncio.wait_for(second, 1)
