"""The deadline of a request, for whatever it asks of the database.

Who answers a request says once until when an answer is of use; every acquire below it waits no
longer. Nothing is cancelled by it: `asyncio.timeout` does that.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from tollkeeper.kernel.clock import Clock

_until_s: ContextVar[float | None] = ContextVar("tollkeeper.deadline", default=None)


def begin(duration_s: float, clock: Clock) -> None:
    """Set the deadline of this task, and of those it starts, `duration_s` from now."""
    _until_s.set(clock.monotonic_s() + duration_s)


@contextmanager
def within(duration_s: float, clock: Clock) -> Iterator[None]:
    """Let every acquire in the block wait until `duration_s` from now at most; nests by the least.

    Tasks that are started inside inherit it.
    """
    until_s = clock.monotonic_s() + duration_s
    outer_s = _until_s.get()
    token = _until_s.set(until_s if outer_s is None else min(outer_s, until_s))
    try:
        yield
    finally:
        _until_s.reset(token)


def remaining_s(clock: Clock) -> float | None:
    """Return the seconds until the request's deadline, 0 at least; None when it has none."""
    until_s = _until_s.get()
    return None if until_s is None else max(0.0, until_s - clock.monotonic_s())
