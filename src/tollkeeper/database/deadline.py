"""The deadline of a request, for whatever it asks of the database.

Who answers a request says once until when an answer is of use; every acquire below it waits no
longer. Nothing is cancelled by it: `asyncio.timeout` does that.
"""

from contextvars import ContextVar

from tollkeeper.kernel.clock import Clock

_until_s: ContextVar[float | None] = ContextVar("tollkeeper.deadline", default=None)


def begin(duration_s: float, clock: Clock) -> None:
    """Set the deadline of this task, and of those it starts, `duration_s` from now at most."""
    until_s, outer_s = clock.monotonic_s() + duration_s, _until_s.get()
    _until_s.set(until_s if outer_s is None else min(outer_s, until_s))


def remaining_s(clock: Clock) -> float | None:
    """Return the seconds until the request's deadline, 0 at least; None when it has none."""
    until_s = _until_s.get()
    return None if until_s is None else max(0.0, until_s - clock.monotonic_s())
