"""Puts one database in another's place: closes the live one, counts, renames both.

Closing is committed before anything is counted, so that nobody can write what was not counted.
Both names change in one unit of work. Invariants: whatever ends the attempt, the live database is
open afterwards, or the error says which command opens it; what was live before is kept, closed.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import asyncpg

from tollkeeper.database.connect import close_gently
from tollkeeper.database.driver import Connection
from tollkeeper.kernel.errors import TollkeeperError
from tollkeeper.migrate.backup_errors import LeftClosed, RollbackRefused
from tollkeeper.migrate.note import Note, State, aside_name, reopening_command, understood, written
from tollkeeper.migrate.restore import Desk
from tollkeeper.migrate.server import CLOSE_TIMEOUT_S
from tollkeeper.migrate.shielding import shielded

EMPTYING_S = 30.0
"""How long the sessions of a closed database may take to end."""

POLL_S = 0.02

Judge = Callable[[Connection], Awaitable[None]]
"""Counts over the last connection to the closed database, and raises if that is too much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What is put in the place of a live database, and what becomes of that one."""

    replacement: str
    backup: str
    state: State
    """What the database becomes that was live."""
    word: str
    """For its name."""


async def swap(desk: Desk, change: Change, judge: Judge) -> str:
    """Put another database in the live one's place and return the name of the one that was.

    Raises:
        RollbackRefused: its sessions do not end; it is open again.
        LeftClosed: it could not be opened again.
    """
    live = await desk.server.connect()
    try:
        try:
            await _close(desk, change)
            await _empty(desk, desk.server.database, (live.get_server_pid(),))
            await judge(live)
            await close_gently(live, CLOSE_TIMEOUT_S)
            await _empty(desk, desk.server.database)
            # Nobody looks in between, either: who is in a database keeps it from being renamed.
            await desk.store.allow_connections(change.replacement, False)
            await _empty(desk, change.replacement)
            return await _exchange(desk, change)
        except BaseException as error:
            await shielded(_open_again(desk, error))
            raise
    finally:
        live.terminate()


async def recover(desk: Desk) -> bool:
    """Open a live database that a killed run has left closed; return whether there was one.

    Only under the lock: then nobody is in the middle of a swap.
    """
    was_closed = False
    for name, is_open, comment in await desk.store.marked():
        note = understood(comment)
        if note is None or note.database != desk.server.database:
            continue
        if note.state is State.CLOSING:
            async with desk.connection.transaction():
                await desk.store.allow_connections(name, True)
                await desk.store.comment(name, note.comment)
            desk.log("rollback.reopened", name=name, backup=note.backup)
            was_closed = True
        elif is_open:  # an undo was about to look into it
            await desk.store.allow_connections(name, False)
    return was_closed


async def _close(desk: Desk, change: Change) -> None:
    database = desk.server.database
    properties = await desk.store.properties(database)
    assert properties is not None
    note = Note(
        state=State.CLOSING,
        database=database,
        service=desk.service,
        backup=change.backup,
        at=desk.equipment.clock.now(),
        comment=properties.comment,
    )
    # Told before it is done: who is killed in between cannot tell any more.
    desk.log("rollback.closing", backup=change.backup, opens_again=reopening_command(desk.service))
    async with desk.connection.transaction():
        await desk.store.comment(database, written(note))
        await desk.store.allow_connections(database, False)


async def _empty(desk: Desk, database: str, ours: Sequence[int] = ()) -> None:
    """End every session in a closed database but ours, and wait until they are gone."""
    clock = desk.equipment.clock
    limit_s = clock.monotonic_s() + EMPTYING_S
    while True:
        try:
            await desk.store.terminate_others(database, ours)
        except asyncpg.InsufficientPrivilegeError as error:
            raise RollbackRefused(database=desk.server.database, reason=str(error)) from error
        remaining = await desk.store.others(database, ours)
        if not remaining:
            return
        if clock.monotonic_s() >= limit_s:
            reason = f"{remaining} sessions in {database} did not end within {EMPTYING_S:g} s"
            raise RollbackRefused(database=desk.server.database, reason=reason)
        await clock.sleep(POLL_S)


async def _exchange(desk: Desk, change: Change) -> str:
    """Change both names, openness and notes together or not at all."""
    store, database = desk.store, desk.server.database
    aside = aside_name(database, change.word, desk.tag())
    properties = await store.properties(database)
    assert properties is not None
    closing = understood(properties.comment)
    assert closing is not None, "it was closed with a note"
    kept = Note(
        state=change.state,
        database=database,
        service=desk.service,
        backup=change.backup,
        at=desk.equipment.clock.now(),
        comment=closing.comment,
    )
    async with desk.connection.transaction():
        await store.rename(database, aside)
        await store.comment(aside, written(kept))
        await store.rename(change.replacement, database)
        await store.allow_connections(database, True)
        await store.comment(database, closing.comment)
    desk.log("rollback.swapped", backup=change.backup, kept=aside)
    return aside


async def _open_again(desk: Desk, error: BaseException) -> None:
    """Open the live database again after `error`, over a new connection where ours was cut."""
    database = desk.server.database
    try:
        if not desk.connection.is_closed() and not desk.connection.is_in_transaction():
            await recover(desk)
            return
        # The lock ended with the connection; the note is the same, whoever reads it.
        desk.connection.terminate()
        async with desk.server.standing_beside() as connection:
            await recover(Desk(desk.server, connection, desk.equipment, service=desk.service))
    except (TollkeeperError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as cause:
        desk.log("rollback.left_closed", opens_again=reopening_command(desk.service))
        raise LeftClosed(
            database=database, command=reopening_command(desk.service), reason=str(error)
        ) from cause
