"""A request's deadline reaches what works for it, and nobody else."""

import asyncio
from datetime import UTC, datetime
from typing import Any

from tollkeeper.database.deadline import remaining_s
from tollkeeper.web.deadline import Deadline


class SetClock:
    def __init__(self) -> None:
        self.time_s = 50.0

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    def monotonic_s(self) -> float:
        return self.time_s

    async def sleep(self, duration_s: float) -> None:
        self.time_s += duration_s


async def test_deadline_reaches_tasks_of_the_request_and_ends_with_it() -> None:
    clock, found = SetClock(), []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await clock.sleep(2.0)
        found.append(remaining_s(clock))
        await asyncio.create_task(look())
        await clock.sleep(100.0)
        found.append(remaining_s(clock))

    async def look() -> None:
        found.append(remaining_s(clock))

    async def request() -> None:
        await Deadline(application, timeout_s=30.0, clock=clock)({}, None, None)  # type: ignore[arg-type]  # passed on unread

    await asyncio.create_task(request())

    assert [28.0, 28.0, 0.0] == found
    assert remaining_s(clock) is None
