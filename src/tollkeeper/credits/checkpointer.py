"""Makes checkpoints and publishes them outside the database.

Reads the ledger and never writes it: no lock is taken that a commit waits for. Invariants: one
maker at a time; a checkpoint, its leaves and the marks they leave commit together or not at all;
each says the hash of the one before it; no leaf is signed that the maker did not write; what is
published is a beginning of what is kept, and a target that fails is tried again in the next round.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import structlog

from tollkeeper.credits.checkpoint import (
    BEFORE_THE_FIRST,
    Checkpoint,
    digest_of,
    read_checkpoint,
)
from tollkeeper.credits.checkpoint_metrics import CheckpointMetrics
from tollkeeper.credits.checkpoint_store import CheckpointStore
from tollkeeper.credits.errors import LeavesUnexplained, NoteInvalid, PublicationFailed
from tollkeeper.credits.merkle import TreeHasher
from tollkeeper.credits.note import SigningKey, split_note
from tollkeeper.credits.publication import CheckpointFile, HttpTarget
from tollkeeper.database.driver import Connection
from tollkeeper.database.pool import Pool
from tollkeeper.database.timeouts import Timeouts
from tollkeeper.kernel.clock import Clock

NOTES_PAGE: Final = 100
"""Notes that are read, and written to a file with one sync, at a time."""

SENT_A_ROUND: Final = 1_000
"""Notes that a target is sent in one round: a new one gets a long chain without holding up the next
checkpoint for hours."""

TIMEOUTS: Final = Timeouts(statement_s=600, lock_s=5, idle_in_transaction_s=60)

SESSION_SETTINGS: Final[Mapping[str, str]] = {
    "application_name": "tollkeeper checkpoints",
    # All accounts are compared with all marks: a hash join, whatever is known of the tables. One
    # core at most, and enough memory for the marks of 300,000 accounts.
    "enable_nestloop": "off",
    "max_parallel_workers_per_gather": "0",
    "work_mem": "64MB",
    "jit": "off",
    **TIMEOUTS.settings(),
}
"""What the maker's connection is opened with."""

_log = structlog.get_logger(__name__)


class Checkpointer:
    """Makes checkpoints over one ledger with one key."""

    def __init__(
        self,
        pool: Pool,
        store: CheckpointStore,
        *,
        key: SigningKey,
        clock: Clock,
        metrics: CheckpointMetrics,
        file: Path | None = None,
        target: HttpTarget | None = None,
    ) -> None:
        self._pool = pool
        self._store = store
        self._key = key
        self._clock = clock
        self._metrics = metrics
        self._file = file
        self._target = target

    async def round(self) -> None:
        """Make a checkpoint of what changed and publish what is not yet.

        Everything is tried, whatever became of the rest; the error that came last is raised, and
        the next round does what this one did not.
        """
        async with AsyncExitStack() as steps:
            if self._target is not None:
                steps.push_async_callback(self._publish, "http", self._publish_to_target)
            if self._file is not None:
                steps.push_async_callback(self._publish, "file", self._publish_to_file)
            await self.make()

    async def make(self) -> Checkpoint | None:
        """Make a checkpoint over the accounts that changed; None when there are none.

        Also None while another worker is at it.
        """
        try:
            async with (
                self._pool.connection() as connection,
                # Before the snapshot is taken: it must hold what the maker before us wrote.
                self._store.maker_lock(connection) as held,
            ):
                if not held:
                    self._metrics.busy()
                    return None
                async with connection.transaction(isolation="repeatable_read"):
                    checkpoint = await self._write(connection)
        except Exception:
            self._metrics.failed()
            raise
        now = self._clock.now()
        if checkpoint is None:
            self._metrics.unchanged(now)
            return None
        self._metrics.made(checkpoint.leaves, now)
        _log.info(
            "credits.checkpoint_made", number=checkpoint.number, leaves=checkpoint.leaves,
            root=checkpoint.root.hex(),
        )  # fmt: skip
        return checkpoint

    async def _write(self, connection: Connection) -> Checkpoint | None:
        now, last = await self._store.last(connection)
        number = 1 if last is None else last.number + 1
        # What is signed is what was written here: rows that somebody planted are never believed.
        if planted := await self._store.unexplained_leaves(connection, number):
            raise LeavesUnexplained(number=number, leaves=planted)
        added = await self._store.add_leaves(connection, number)
        if not added:
            return None
        hasher = TreeHasher()
        async for leaf in self._store.leaves(connection, number):
            hasher.add(leaf.hash)
        tree = hasher.finish()
        if tree.size != added:
            raise LeavesUnexplained(number=number, leaves=tree.size - added)
        checkpoint = Checkpoint(
            origin=self._key.name,
            number=number,
            leaves=tree.size,
            root=tree.root,
            made_at=now,
            previous=BEFORE_THE_FIRST if last is None else digest_of(split_note(last.note)[0]),
        )
        await self._store.mark_accounts(connection, number)
        await self._store.add(connection, checkpoint, self._key.sign(checkpoint.text()))
        return checkpoint

    async def _publish(self, target: str, publish: Callable[[], Awaitable[None]]) -> None:
        try:
            await publish()
        except Exception:
            self._metrics.publication_failed(target)
            raise

    async def _publish_to_file(self) -> None:
        assert self._file is not None
        file = CheckpointFile(self._file, self._key.name)
        await asyncio.to_thread(file.__enter__)
        try:
            if not file.is_ours:
                return
            async with self._pool.connection() as connection:
                after = await self._last_in_file(connection, file)
                while page := await self._store.after(connection, after, NOTES_PAGE):
                    await asyncio.to_thread(file.append, [kept.note for kept in page])
                    self._metrics.published("file", len(page))
                    after = page[-1].number
        finally:
            file.__exit__(None, None, None)

    async def _last_in_file(self, connection: Connection, file: CheckpointFile) -> int:
        """Return the number of the file's last note, which must be the table's.

        Raises:
            PublicationFailed: the file is another ledger's, or the table has lost checkpoints.
        """
        note = await asyncio.to_thread(file.last_note)
        if file.mended_bytes:
            _log.warning("credits.checkpoint_file_mended", torn_bytes=file.mended_bytes)
        if note is None:
            return 0
        try:
            text, _ = split_note(note)
            number = read_checkpoint(text).number
        except NoteInvalid as error:
            raise PublicationFailed(place=str(self._file), problem=f"{error}") from error
        kept = await self._store.checkpoint(connection, number)
        if kept is None or split_note(kept.note)[0] != text:
            raise PublicationFailed(
                place=str(self._file),
                problem=f"its last note, checkpoint {number}, is not the one in the table: it is "
                "another ledger's, or the database was set back",
            )
        return number

    async def _publish_to_target(self) -> None:
        target = self._target
        assert target is not None
        async with (
            self._pool.connection() as connection,
            self._store.publication_lock(connection, target.digest) as held,
        ):
            if not held:
                return
            after = await self._store.published_up_to(connection, target.digest)
            for kept in await self._store.after(connection, after, SENT_A_ROUND):
                await target.send(kept.number, kept.note)
                await self._store.published(connection, target.digest, kept.number)
                self._metrics.published("http", 1)
