"""A clock that a test sets."""

import asyncio
from datetime import UTC, datetime, timedelta


class SetClock:
    """Stands until it is moved; sleeping gives way to others and takes no time."""

    def __init__(self, now: datetime | None = None) -> None:
        self._now = now or datetime(2026, 3, 1, 12, tzinfo=UTC)
        self._monotonic_s = 1_000.0
        self.slept_s = 0.0

    def now(self) -> datetime:
        return self._now

    def monotonic_s(self) -> float:
        return self._monotonic_s

    async def sleep(self, duration_s: float) -> None:
        self.slept_s += duration_s
        await asyncio.sleep(0)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now += timedelta(seconds=seconds)
        self._monotonic_s += seconds

    def set_wall(self, now: datetime) -> None:
        """Set what the calendar says; durations go on as before."""
        self._now = now
