"""One connection of a pool, and what the pool knows of it.

Not a wrapper: who acquires gets the driver's own connection. Plain attributes, because they change
with every acquire.
"""

import asyncio
import traceback
from collections.abc import Iterable
from types import FrameType

import structlog

from tollkeeper.database.driver import Connection

_log = structlog.get_logger(__name__)

STACK_LIMIT = 20
"""Frames that are reported of who holds a connection for long."""


class Slot:
    """A connection's place in its pool. Times are monotonic seconds."""

    __slots__ = (
        "connection",
        "expires_s",
        "former_wait_s",
        "generation",
        "is_retired",
        "is_told",
        "since_s",
        "task",
        "wait_s",
    )

    def __init__(self, connection: Connection, *, generation: int, expires_s: float) -> None:
        self.connection = connection
        self.generation = generation
        self.expires_s = expires_s
        self.since_s = 0.0
        """Since when it is idle, or held."""
        self.wait_s = 0.0
        """How long its holder waited for it; taken by the holder's first statement."""
        self.former_wait_s = 0.0
        """The same of the holder before, until its last statement has been told of."""
        self.task: asyncio.Task[object] | None = None
        self.is_told = False
        self.is_retired = False

    @property
    def is_clean(self) -> bool:
        """Whether it can be used again: open, and not inside a database transaction."""
        return not self.connection.is_closed() and not self.connection.is_in_transaction()

    def begin_hold(self, now_s: float) -> None:
        """Note a new holder.

        The driver tells of a statement a moment after its end: then its holder may have given the
        connection back, and the next may have it.
        """
        if self.wait_s:
            self.former_wait_s, self.wait_s = self.wait_s, 0.0
            asyncio.get_running_loop().call_soon(self._forget_former)
        self.since_s = now_s
        self.is_told = False

    def take_wait_s(self) -> float:
        """Return, once, how long the holder waited whose statement has ended."""
        if self.former_wait_s:
            wait_s, self.former_wait_s = self.former_wait_s, 0.0
        else:
            wait_s, self.wait_s = self.wait_s, 0.0
        return wait_s

    def _forget_former(self) -> None:
        self.former_wait_s = 0.0


class Holders:
    """Which tasks hold connections of a pool; reports who wants two, and who keeps one for long."""

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._counts: dict[asyncio.Task[object], int] = {}
        self.nested_total = 0
        self.held_long_total = 0

    def __contains__(self, task: asyncio.Task[object] | None) -> bool:
        return task in self._counts

    def add(self, slot: Slot, task: asyncio.Task[object] | None) -> None:
        """Note that a task holds a connection."""
        slot.task = task
        if task is not None:
            self._counts[task] = self._counts.get(task, 0) + 1

    def remove(self, slot: Slot) -> None:
        """Note that it was given back, by whichever task."""
        task, slot.task = slot.task, None
        if task is None:
            return
        self._counts[task] -= 1
        if not self._counts[task]:
            del self._counts[task]

    def note_nested(self, task: asyncio.Task[object] | None, *, is_refused: bool) -> None:
        """Count and report a task that asks for a second connection."""
        self.nested_total += 1
        _log.warning(
            "database.nested_acquire", pool=self._pool, refused=is_refused, frames=stack_of(task)
        )

    def overdue(self, held: Iterable[Slot], *, now_s: float, limit_s: float | None) -> list[Slot]:
        """Return, and report, the connections that were held for too long."""
        found = [
            slot
            for slot in held
            if limit_s is not None and not slot.is_retired and now_s - slot.since_s >= limit_s
        ]
        for slot in found:
            held_s = round(now_s - slot.since_s, 1)
            _log.error("database.connection_cut", pool=self._pool, held_s=held_s)
        return found

    def report(self, held: Iterable[Slot], *, now_s: float, limit_s: float) -> None:
        """Report once each connection that has been held for `limit_s`."""
        for slot in held:
            if slot.is_told or now_s - slot.since_s < limit_s:
                continue
            slot.is_told = True
            self.held_long_total += 1
            _log.warning(
                "database.connection_held",
                pool=self._pool,
                held_s=round(now_s - slot.since_s, 1),
                task=None if slot.task is None else slot.task.get_name(),
                has_ended=slot.task is None or slot.task.done(),
                frames=stack_of(slot.task),
            )


def stack_of(task: asyncio.Task[object] | None) -> tuple[str, ...]:
    """Say where a task is now, outermost first: `file:line function`; empty when it has ended.

    Looked up when it is reported, so that acquiring does not pay for it. `Task.get_stack` shows
    only the outermost frame of a task that waits.
    """
    if task is None or task.done():
        return ()
    frames: list[FrameType] = []
    awaited: object = task.get_coro()
    while awaited is not None and len(frames) < STACK_LIMIT:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "ag_frame", None)
        if frame is None:
            break
        frames.append(frame)
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "ag_await", None)
    summary = traceback.StackSummary.extract((frame, frame.f_lineno) for frame in frames)
    return tuple(f"{each.filename}:{each.lineno} {each.name}" for each in summary)
