"""Archives old partitions of transactions, seals what is archived, and looks whether it stays so.

Each partition goes through three steps, and what has been done is asked of the catalog, so that a
round goes on where one was cut: its bounds are written down and validated, it changes its table in
one commit, it is sealed. Invariants: no statement of anybody finds a row in neither table or in
both; nobody waits longer than `archive_store.TIMEOUTS.lock_s` for a lock that is asked for here; a
seal is never replaced.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Final

import structlog

from tollkeeper.credits.archive_store import Archivable, Archived, ArchiveStore
from tollkeeper.credits.errors import NoteInvalid
from tollkeeper.credits.life_metrics import ArchiveMetrics
from tollkeeper.credits.merkle import TreeHasher, leaf_hash
from tollkeeper.credits.note import SigningKey, open_note, split_note
from tollkeeper.credits.seal import UNSIGNED, Seal, body_of, is_signed
from tollkeeper.database.connect import is_lock_refused
from tollkeeper.database.driver import Connection
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.backoff import Backoff
from tollkeeper.kernel.clock import Clock

ATTEMPTS: Final = Backoff(first_ms=250.0, ceiling_ms=4_000.0, retries=6)
"""Waits between attempts to get a lock that somebody else holds; then it is the next round's."""

CHECK_AFTER: Final = timedelta(days=30)
"""A seal is compared with its partition again after this time."""

LOST: Final = "it is not in the archive"
"""What is wrong with a partition that has a seal and is nowhere."""

_log = structlog.get_logger(__name__)


class Archivist:
    """Archives the partitions of one ledger, as the owner of its schema.

    Its clock and the database's must agree that a partition is old: what is archived takes no
    transaction any more, so one clock that runs ahead must not archive what is written to.
    """

    def __init__(
        self,
        pool: Pool,
        store: ArchiveStore,
        *,
        key: SigningKey | None,
        clock: Clock,
        jitter: Callable[[], float],
        metrics: ArchiveMetrics,
        after_quarters: int,
        attempts: Backoff = ATTEMPTS,
    ) -> None:
        """With `after_quarters` 0 nothing is archived; what is, is sealed and checked."""
        self._pool = pool
        self._store = store
        self._key = key
        self._clock = clock
        self._jitter = jitter
        self._metrics = metrics
        self._after_quarters = after_quarters
        self._attempts = attempts

    async def round(self, check_after: timedelta = CHECK_AFTER) -> None:
        """Archive what is old enough, seal what is not sealed, check the seals that are due."""
        async with (
            self._pool.connection() as connection,
            self._store.archivist_lock(connection) as held,
        ):
            if not held:
                return
            if self._after_quarters:
                now = self._clock.now()
                for each in await self._store.archivable(connection, self._after_quarters, now):
                    if not await self._archive(connection, each):
                        break  # who keeps this one keeps the next: each attempt stops the commits
            for archived in await self._store.archived(connection, check_after):
                if archived.note is None:
                    await self._seal(connection, archived)
                elif archived.is_due or archived.is_there == (archived.problem == LOST):
                    await self._check(connection, archived)
            left = await self._store.archived(connection, check_after)
        broken = sum(not each.is_there or each.problem is not None for each in left)
        self._metrics.archive_stands(partitions=len(left), broken=broken)

    # Moving --------------------------------------------------------------------------------------

    async def _archive(self, connection: Connection, archivable: Archivable) -> bool:
        """Move a partition; False when somebody keeps a lock on it."""
        for statement in (archivable.bound, archivable.validate):
            if statement is not None and not await self._locked(
                archivable.partition, partial(self._store.prepare, connection, statement)
            ):
                return False
        is_moved = await self._locked(
            archivable.partition, partial(self._store.archive, connection, archivable.partition)
        )
        if is_moved:
            self._metrics.archived()
            _log.info("worker.partition_archived", partition=archivable.partition)
        return is_moved

    async def _locked(self, partition: str, work: Callable[[], Awaitable[None]]) -> bool:
        """Do what needs a lock, again after growing waits; False when somebody keeps it."""
        for attempt in range(self._attempts.retries + 1):
            try:
                await work()
            except Exception as error:
                if not is_lock_refused(error):
                    raise
                await asyncio.sleep(self._attempts.wait_ms(attempt, self._jitter()) / 1_000)
                continue
            return True
        self._metrics.postponed()
        _log.warning("worker.archiving_postponed", partition=partition, attempts=attempt + 1)
        return False

    # Sealing -------------------------------------------------------------------------------------

    async def _seal(self, connection: Connection, archived: Archived) -> None:
        seal = await self._read(connection, archived)
        now = self._clock.now()
        if self._key is None:
            note = seal.text(UNSIGNED, now)
        else:
            note = self._key.sign(seal.text(self._key.name, now))
        await self._store.add_seal(connection, seal, note, now)
        await self._store.mark_seal(connection, seal.partition, None)
        _log.info(
            "worker.partition_sealed", partition=seal.partition, transactions=seal.tree.size,
            root=seal.tree.root.hex(), is_signed=self._key is not None,
        )  # fmt: skip

    async def _check(self, connection: Connection, archived: Archived) -> None:
        problem = await self._problem_of(connection, archived)
        await self._store.mark_seal(connection, archived.partition, problem)
        self._metrics.checked(is_intact=problem is None)
        if problem is not None:
            _log.error("worker.seal_broken", partition=archived.partition, problem=problem)

    async def _problem_of(self, connection: Connection, archived: Archived) -> str | None:
        """Return what is wrong with a partition beside its seal, None when nothing is."""
        assert archived.note is not None
        if not archived.is_there:
            return LOST
        if (signature := self._problem_of_signature(archived.note)) is not None:
            return signature
        seal = await self._read(connection, archived)
        if seal.body() != body_of(archived.note):
            return "its rows are not those that were sealed"
        if (archived.transactions, archived.root) != (seal.tree.size, seal.tree.root):
            return "its seal has other numbers beside its text"
        return None

    def _problem_of_signature(self, note: str) -> str | None:
        """Hold a seal that our key signed against it; other keys' are for who has those."""
        if self._key is None or not is_signed(note):
            return None
        try:
            _, signatures = split_note(note)
            if any(self._key.verifying.is_named_by(*signature) for signature in signatures):
                open_note(note, [self._key.verifying])
        except NoteInvalid as error:
            return f"its seal cannot be believed: {error}"
        return None

    async def _read(self, connection: Connection, archived: Archived) -> Seal:
        hasher = TreeHasher()
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            async for digest in self._store.digests(connection, archived):
                hasher.add(leaf_hash(digest))
            sums = await self._store.sums(connection, archived)
        return Seal(
            partition=archived.partition, from_time=archived.from_time, to_time=archived.to_time,
            tree=hasher.finish(), sums=sums,
        )  # fmt: skip
