"""Checkpoints on a ledger at work: nothing missed, nobody held up, whole or not at all."""

import asyncio
import random
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from prometheus_client import CollectorRegistry
from tests.checkpoints import KEY, audit, notes_of, running_maker
from tests.ledger import TENANT, Ledger, consume, opening, running_ledger, topup, words_of
from tests.unit.credits.test_publication import running_target

from tollkeeper.credits.chain import genesis
from tollkeeper.credits.checkpoint import Checkpoint, digest_of, read_checkpoint
from tollkeeper.credits.checkpoint_store import CheckpointStore
from tollkeeper.credits.checkpointer import Checkpointer
from tollkeeper.credits.errors import PublicationFailed
from tollkeeper.credits.note import make_key, open_note
from tollkeeper.credits.publication import HttpTarget
from tollkeeper.database.connect import connector
from tollkeeper.database.driver import Connection
from tollkeeper.database.errors import SchemaMissing
from tollkeeper.kernel.ids import AccountId, TenantId, shard_of
from tollkeeper.wiring import CREDITS_ROLE

PROGRAM = Path(__file__).parents[2] / "checkpoint_process.py"
DEADLINE_S = 60.0
NAMES = tuple(f"account-{number}" for number in range(12))


@pytest.fixture
async def maker(credits_dsn: str) -> AsyncIterator[Checkpointer]:
    async with running_maker(credits_dsn) as maker:
        yield maker


async def notes_in_table(owner: Connection) -> list[str]:
    rows = await owner.fetch("SELECT number, note FROM checkpoints ORDER BY number")

    assert [row["number"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["note"] for row in rows]


async def test_the_first_checkpoint_covers_every_account_and_the_next_what_changed(
    ledger: Ledger, owner: Connection, maker: Checkpointer
) -> None:
    await ledger.open_with(10, "ann", "bob")
    await ledger.execute(opening("empty"))
    first = await maker.make()
    nothing = await maker.make()
    await ledger.execute(consume("bob", 3))
    second = await maker.make()
    rows = await owner.fetch(
        "SELECT checkpoint, position, account_id, sequence, balance FROM checkpoint_leaves"
        " ORDER BY checkpoint, position"
    )
    ordered = sorted(["ann", "bob", "empty"], key=lambda name: (shard_of(name), name))

    assert first is not None
    assert second is not None
    assert nothing is None
    assert [(1, 3), (2, 1)] == [(each.number, each.leaves) for each in (first, second)]
    assert ordered == [row["account_id"] for row in rows if row["checkpoint"] == 1]
    assert [0, 1, 2, 0] == [row["position"] for row in rows]
    assert [(2, 0, "bob", 2, 7)] == [tuple(row) for row in rows if row["checkpoint"] == 2]
    assert 0 == next(row["sequence"] for row in rows if row["account_id"] == "empty")


async def test_a_checkpoint_is_signed_and_names_the_one_before(
    ledger: Ledger, owner: Connection, maker: Checkpointer
) -> None:
    made: list[Checkpoint | None] = []
    for _ in range(3):
        await ledger.execute(opening("ann"), topup("ann", 1))
        made.append(await maker.make())
    texts = [open_note(note, [KEY.verifying]) for note in await notes_in_table(owner)]

    assert made == [read_checkpoint(text) for text in texts]
    assert [digest_of(text) for text in texts[:2]] == [
        read_checkpoint(text).previous for text in texts[1:]
    ]
    assert bytes(32) == read_checkpoint(texts[0]).previous
    assert {"example.com/credits"} == {read_checkpoint(text).origin for text in texts}


async def test_every_version_committed_before_a_checkpoint_is_covered_by_it(
    ledger: Ledger, owner: Connection, credits_dsn: str, maker: Checkpointer
) -> None:
    """Two processes' engines spend while checkpoints are made one after the other."""
    await ledger.open_with(10**6, *NAMES)
    acknowledged = dict.fromkeys(NAMES, 0)
    covered: list[tuple[int, dict[str, int]]] = []
    leaving = asyncio.Event()

    async def spend(engine: Ledger, seed: int) -> None:
        chosen = random.Random(seed)
        while not leaving.is_set():
            name = chosen.choice(NAMES)
            assert ["posted"] == words_of(await engine.execute(consume(name, 1)))
            account = await engine.service.account(name, None)  # type: ignore[arg-type]  # a name
            acknowledged[name] = max(acknowledged[name], account.version)

    async def make(number: int = 0) -> None:
        while number < 30:
            before = dict(acknowledged)
            made = await maker.make()
            number = number if made is None else made.number
            covered.append((number, before))
        leaving.set()

    async with running_ledger(credits_dsn) as other:
        await asyncio.gather(
            make(), *(spend(engine, seed) for seed in range(6) for engine in (ledger, other))
        )
    rows = await owner.fetch("SELECT checkpoint, account_id, sequence FROM checkpoint_leaves")
    missed = [
        (number, name, version)
        for number, before in covered
        for name, version in before.items()
        if version
        > max(
            (r["sequence"] for r in rows if r["account_id"] == name and r["checkpoint"] <= number),
            default=0,
        )
    ]

    assert [] == missed
    await maker.make()
    found = await audit(ledger, await notes_in_table(owner))
    assert () == found.faults
    await ledger.assert_sound()


async def test_a_commit_that_becomes_visible_late_is_not_missed(
    ledger: Ledger, owner: Connection, maker: Checkpointer
) -> None:
    """It began before the checkpoint and ended after it, with the time of its beginning."""
    await ledger.open_with(10, "ann", "bob")
    await maker.make()
    async with owner.transaction():
        await owner.execute("UPDATE accounts SET version = version + 1 WHERE account_id = 'ann'")
        await ledger.execute(consume("bob", 1))
        while_open = await maker.make()
    after = await maker.make()

    assert while_open is not None
    assert after is not None
    assert [1, 1] == [while_open.leaves, after.leaves]
    assert "ann" == await owner.fetchval(
        "SELECT account_id FROM checkpoint_leaves WHERE checkpoint = 3"
    )


class PausingStore(CheckpointStore):
    """Waits in the open unit of work, when all but the last row is written."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()

    async def add(self, connection: Connection, checkpoint: Checkpoint, note: str) -> None:
        self.reached.set()
        await self.go_on.wait()
        await super().add(connection, checkpoint, note)


async def test_the_ledger_is_not_held_up_by_a_checkpoint_that_is_being_made(
    ledger: Ledger, owner: Connection, credits_dsn: str, maker: Checkpointer
) -> None:
    await ledger.open_with(10, *NAMES)
    store = PausingStore()
    async with running_maker(credits_dsn, store=store) as slow:
        making = asyncio.create_task(slow.make())
        await store.reached.wait()
        async with asyncio.timeout(DEADLINE_S):
            results = await ledger.execute(*(consume(name, 1) for name in NAMES))
        busy = await maker.make()
        locks = await owner.fetch(
            "SELECT DISTINCT mode FROM pg_locks JOIN pg_class AS c ON c.oid = relation"
            " WHERE c.relname = 'accounts' AND mode <> 'AccessShareLock'"
        )
        store.go_on.set()
        made = await making
    after = await maker.make()

    assert ["posted"] * len(NAMES) == words_of(results)
    assert busy is None
    assert [] == locks
    assert made is not None
    assert after is not None
    assert [len(NAMES)] * 2 == [made.leaves, after.leaves]


async def test_a_checkpoint_does_not_wait_for_the_locks_of_a_commit(
    ledger: Ledger, owner: Connection, maker: Checkpointer
) -> None:
    await ledger.open_with(10, "ann")
    async with owner.transaction():
        await owner.execute("SELECT 1 FROM accounts FOR UPDATE")
        async with asyncio.timeout(DEADLINE_S):
            made = await maker.make()

    assert made is not None


async def test_several_makers_make_one_chain(
    ledger: Ledger, owner: Connection, credits_dsn: str, tmp_path: Path
) -> None:
    await ledger.open_with(10**6, *NAMES)
    file = tmp_path / "notes"

    async def make(seed: int) -> None:
        chosen = random.Random(seed)
        async with running_maker(credits_dsn, file=file) as maker:
            made = 0
            while made < 5:  # however often another one is at it
                await ledger.execute(consume(chosen.choice(NAMES), 1))
                made += await maker.make() is not None
                await maker.round()

    await asyncio.gather(*(make(seed) for seed in range(3)))
    async with running_maker(credits_dsn, file=file) as last:
        await last.round()
    notes = await notes_in_table(owner)
    found = await audit(ledger, notes)

    assert notes == notes_of(file)
    assert (len(notes), 0, ()) == (found.checkpoints, found.repeated, found.faults)
    assert len(notes) >= 15


async def test_a_maker_that_is_killed_leaves_whole_checkpoints_and_a_file_that_goes_on(
    ledger: Ledger, owner: Connection, credits_dsn: str, tmp_path: Path
) -> None:
    """SIGKILL at moments of no choice, while the ledger is at work."""
    await ledger.open_with(10**6, *NAMES)
    file, chosen, leaving = tmp_path / "notes", random.Random(0), asyncio.Event()

    async def spend() -> None:
        while not leaving.is_set():
            await ledger.execute(*(consume(name, 1) for name in NAMES))
            await asyncio.sleep(0.005)  # else it takes the core that the maker starts on

    spending = asyncio.create_task(spend())
    for _ in range(8):
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(PROGRAM), credits_dsn, str(file), stdout=PIPE
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(DEADLINE_S):
                for _ in range(chosen.randrange(1, 16)):
                    assert await process.stdout.readline()
                await asyncio.sleep(chosen.random() * 0.02)
        finally:
            process.kill()
            await process.communicate()
    leaving.set()
    await spending
    published = notes_of(file) if file.exists() else []
    kept = await notes_in_table(owner)
    async with running_maker(credits_dsn, file=file) as maker:
        await maker.round()
    notes = await notes_in_table(owner)
    found = await audit(ledger, notes_of(file))

    assert published == kept[: len(published)]
    assert kept == notes[: len(kept)]
    assert notes == notes_of(file)
    assert ((), 0) == (found.faults, found.repeated)
    assert found.checkpoints >= 8


async def test_what_a_dead_maker_did_not_publish_the_next_one_does(
    ledger: Ledger, owner: Connection, credits_dsn: str, tmp_path: Path
) -> None:
    file = tmp_path / "notes"
    async with running_maker(credits_dsn) as dying:
        for amount in (1, 2, 3):
            await ledger.execute(opening("ann"), topup("ann", amount))
            await dying.make()
    async with running_maker(credits_dsn, file=file) as publishing:
        await publishing.round()
        await publishing.round()

    assert await notes_in_table(owner) == notes_of(file)
    assert 3 == len(notes_of(file))


async def test_nothing_is_added_to_a_file_that_does_not_agree_with_the_table(
    ledger: Ledger, credits_dsn: str, other_dsn: str, tmp_path: Path
) -> None:
    file = tmp_path / "notes"
    await ledger.open_with(1, "ann")
    async with running_maker(credits_dsn, file=file) as maker:
        await maker.round()
    before = file.read_bytes()
    async with (
        running_ledger(other_dsn) as other,
        running_maker(other_dsn, file=file) as maker,
    ):
        with pytest.raises(PublicationFailed, match="not the one in the table"):
            await maker.round()
        await other.open_with(1, "bob")
        with pytest.raises(PublicationFailed, match="not the one in the table"):
            await maker.round()

    assert before == file.read_bytes()


async def test_a_file_with_another_kind_of_note_is_left_alone(
    ledger: Ledger, credits_dsn: str, tmp_path: Path
) -> None:
    file = tmp_path / "notes"
    file.write_text(KEY.sign("no checkpoint\n") + "\n")
    await ledger.open_with(1, "ann")
    async with running_maker(credits_dsn, file=file) as maker:
        with pytest.raises(PublicationFailed, match="no checkpoint of a ledger"):
            await maker.round()


async def test_a_target_gets_every_note_in_order_once_it_takes_them(
    ledger: Ledger, owner: Connection, credits_dsn: str, tmp_path: Path
) -> None:
    registry, file = CollectorRegistry(), tmp_path / "notes"
    with running_target(500) as (url, kind):
        async with running_maker(credits_dsn, url=url, file=file, registry=registry) as maker:
            for amount in (1, 2):
                await ledger.execute(opening("ann"), topup("ann", amount))
                with pytest.raises(PublicationFailed, match="answered 500"):
                    await maker.round()
            refused = list(kind.taken)
            kind.status, kind.taken = 200, []
            for amount in (3, 4):
                await ledger.execute(topup("ann", amount))
                await maker.round()
            await maker.round()
    notes = await notes_in_table(owner)

    assert ["1", "1"] == [number for number, _, _ in refused]
    assert notes == [body for _, _, body in kind.taken] == notes_of(file)
    assert ["1", "2", "3", "4"] == [number for number, _, _ in kind.taken]
    value = registry.get_sample_value
    assert 4 == value("credits_checkpoint_publications_total", {"target": "http", "result": "ok"})
    assert 2 == value(
        "credits_checkpoint_publications_total", {"target": "http", "result": "failed"}
    )
    assert 4 == value("credits_checkpoint_publications_total", {"target": "file", "result": "ok"})


async def test_a_torn_note_is_mended_by_the_next_round(
    ledger: Ledger, owner: Connection, credits_dsn: str, tmp_path: Path
) -> None:
    file = tmp_path / "notes"
    async with running_maker(credits_dsn, file=file) as maker:
        for amount in (1, 2, 3):
            await ledger.execute(opening("ann"), topup("ann", amount))
            await maker.round()
            file.write_bytes(file.read_bytes()[:-7])
        await maker.round()

    assert await notes_in_table(owner) == notes_of(file)
    assert 3 == len(notes_of(file))


async def test_one_at_a_time_publishes_to_a_target(
    ledger: Ledger, owner: Connection, credits_dsn: str
) -> None:
    await ledger.open_with(1, "ann")
    with running_target() as (url, kind):
        target = HttpTarget(url)
        async with running_maker(credits_dsn, url=url) as maker:
            async with CheckpointStore().publication_lock(owner, target.digest) as held:
                assert held
                await maker.round()
                while_held = list(kind.taken)
            await maker.round()
        await target.close()

    assert [] == while_held
    assert ["1"] == [number for number, _, _ in kind.taken]


async def test_the_rounds_are_counted(ledger: Ledger, owner: Connection, credits_dsn: str) -> None:
    registry = CollectorRegistry()
    value = registry.get_sample_value
    async with running_maker(credits_dsn, registry=registry) as maker:
        counts = [value("credits_checkpoints_total", {"result": "made"})]
        await ledger.open_with(1, "ann", "bob")
        await maker.make()
        await maker.make()
        await owner.execute("ALTER TABLE checkpoints RENAME TO hidden")
        with pytest.raises(SchemaMissing):
            await maker.round()
        await owner.execute("ALTER TABLE hidden RENAME TO checkpoints")
        again = await maker.make()
    counts += [
        value("credits_checkpoints_total", {"result": result})
        for result in ("made", "unchanged", "busy", "failed")
    ]

    assert again is None
    assert [0, 1, 2, 0, 1] == counts
    assert 2 == value("credits_checkpoint_leaves_sum")
    assert (value("credits_checkpoint_last_success_timestamp_seconds") or 0) > 1.7e9


async def test_the_chain_goes_on_under_another_key(
    ledger: Ledger, owner: Connection, credits_dsn: str
) -> None:
    other = make_key("example.com/credits", bytes(32))
    for key in (KEY, other):
        async with running_maker(credits_dsn, key=key) as maker:
            await ledger.execute(opening("ann"), topup("ann", 1))
            await maker.make()
    notes = await notes_in_table(owner)

    assert () == (await audit(ledger, notes, keys=[KEY, other])).faults
    assert ["signature"] == [f.fault for f in (await audit(ledger, notes)).faults]


async def test_marks_that_were_lost_cover_everything_once_more(
    ledger: Ledger, owner: Connection, maker: Checkpointer
) -> None:
    await ledger.open_with(1, "ann", "bob")
    await maker.make()
    await owner.execute("TRUNCATE checkpointed_accounts")
    again = await maker.make()

    assert again is not None
    assert 2 == again.leaves
    assert () == (await audit(ledger, await notes_in_table(owner))).faults


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE checkpoints SET number = 1", "DELETE FROM checkpoints", "TRUNCATE checkpoints",
        "UPDATE checkpoint_leaves SET balance = 1", "DELETE FROM checkpoint_leaves",
        "TRUNCATE checkpoint_leaves",
    ],
)  # fmt: skip
async def test_not_even_the_owner_changes_what_was_signed(
    ledger: Ledger, owner: Connection, maker: Checkpointer, change: str
) -> None:
    await ledger.open_with(1, "ann")
    await maker.make()
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match=r"checkpoint\w+ is append-only"):
        await owner.execute(change)


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO checkpoints VALUES (9, now(), 1, decode(repeat('00', 32), 'hex'), '')",
        "INSERT INTO checkpoint_leaves SELECT * FROM checkpoint_leaves",
        "UPDATE checkpoints SET note = ''",
        "DELETE FROM checkpoint_leaves",
        "SELECT * FROM checkpointed_accounts",
        "SELECT * FROM checkpoint_publications",
    ],
)
async def test_the_service_may_only_read_them(credits_dsn: str, statement: str) -> None:
    role = await connector(credits_dsn, role=CREDITS_ROLE)()
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="permission denied"):
        await role.execute(statement)
    await role.execute("SELECT note FROM checkpoints JOIN checkpoint_leaves ON true")
    await role.execute("SELECT * FROM audit_log_chain")
    await role.close()


async def test_the_view_shows_the_chain_and_who_signed_for_it(
    ledger: Ledger, owner: Connection, maker: Checkpointer
) -> None:
    await ledger.open_with(10, "ann")
    await ledger.execute(consume("ann", 1))
    await maker.make()
    await ledger.execute(consume("ann", 1))
    rows = await owner.fetch("SELECT * FROM audit_log_chain ORDER BY sequence")
    hashes = await owner.fetch(
        "SELECT hash, transaction_id FROM credit_transactions ORDER BY sequence"
    )
    (note,) = await notes_in_table(owner)
    start = genesis(AccountId("ann"), TenantId(TENANT))
    line = note.rpartition("\n\n")[2].strip()

    assert ["ann/1", "ann/2", "ann/3"] == [row["id"] for row in rows]
    assert [row["transaction_id"] for row in hashes] == [row["transaction_id"] for row in rows]
    assert [row["hash"] for row in hashes] == [row["current_hash"] for row in rows]
    assert [start, *(row["hash"] for row in hashes[:2])] == [r["previous_hash"] for r in rows]
    assert [line, line, None] == [row["signature"] for row in rows]
    assert [1, 1, None] == [row["checkpoint"] for row in rows]
