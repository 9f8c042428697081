"""Rollback by restoring beside and swapping: what it loses is told, what it was is kept."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest
from tests.backups import (
    SERVICE,
    HastyClock,
    Told,
    backed_up,
    beside,
    connected,
    database_in,
    drop_asides,
    equipment_in,
    fill_ledger,
    names_beside,
    rows_in,
    spend_in,
    topup_in,
)
from tests.conftest import run
from tests.ledger import consume, opening, running_ledger, topup, words_of

from tollkeeper.migrate.back import Back, Destination
from tollkeeper.migrate.backup import Occasion, take_backup
from tollkeeper.migrate.backup_errors import (
    BackupChanged,
    BackupMissing,
    DatabaseInUse,
    LossNotAccepted,
    NothingToUndo,
    RollbackRefused,
)
from tollkeeper.migrate.catalogue import DUMP
from tollkeeper.migrate.equipment import Equipment
from tollkeeper.migrate.note import State
from tollkeeper.migrate.rollback import (
    list_asides,
    reopen_database,
    roll_back,
    undo_rollback,
)
from tollkeeper.migrate.store import MigrationStore

PROGRAM = Path(__file__).parent.parent / "backup_process.py"
ANY_LOSS = 10**9


@pytest.fixture
def told() -> Told:
    """Who hears what is logged and shown."""
    return Told()


@pytest.fixture
def equipment(tmp_path: Path, told: Told) -> Equipment:
    """A folder for backups, and who hears of them."""
    return equipment_in(tmp_path / "backups", told)


@pytest.fixture
async def dsn(credits_dsn: str) -> AsyncIterator[str]:
    """A ledger of which databases may be put aside."""
    yield credits_dsn
    await drop_asides(credits_dsn)


@pytest.fixture
async def other_dsn(other_credits_dsn: str) -> AsyncIterator[str]:
    """The same on every PostgreSQL that is installed."""
    yield other_credits_dsn
    await drop_asides(other_credits_dsn)


async def back(dsn: str, backup_id: str, loss: int, equipment: Equipment) -> object:
    return await roll_back(dsn, SERVICE, backup_id, accept_loss=loss, equipment=equipment)


async def test_a_ledger_goes_back_and_forth_again(other_dsn: str, equipment: Equipment) -> None:
    await fill_ledger(other_dsn)
    async with connected(other_dsn) as connection:
        await connection.execute(f"COMMENT ON DATABASE {database_in(other_dsn)} IS 'the ledger'")
    backup = await backed_up(other_dsn, equipment)
    was = await rows_in(other_dsn)
    await spend_in(other_dsn, ["account-0", "account-1"], 3, amount=10)
    await topup_in(other_dsn, "account-2", 500)
    went_on = await rows_in(other_dsn)

    done = await roll_back(other_dsn, SERVICE, backup.id, accept_loss=7, equipment=equipment)

    assert 7 == done.lost
    assert (
        "7 transactions with a sum of +440 minor units, and 0 accounts opened" == done.lost_detail
    )
    assert was == await rows_in(other_dsn)
    with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
        await asyncpg.connect(beside(other_dsn, done.kept))
    assert [State.KEPT] == [each.state for each in await list_asides(other_dsn, SERVICE, equipment)]

    await undo_rollback(other_dsn, SERVICE, accept_loss=0, equipment=equipment)

    assert went_on == await rows_in(other_dsn)
    async with connected(other_dsn) as connection:
        comment = await connection.fetchval(
            "SELECT shobj_description(oid, 'pg_database') FROM pg_database"
            " WHERE datname = current_database()"
        )
    assert "the ledger" == comment
    with pytest.raises(NothingToUndo):
        await undo_rollback(other_dsn, SERVICE, accept_loss=0, equipment=equipment)


async def test_a_loss_that_was_not_accepted_leaves_everything_as_it_was(
    dsn: str, equipment: Equipment, told: Told
) -> None:
    await fill_ledger(dsn, accounts=2, spends=1)
    backup = await backed_up(dsn, equipment)
    async with running_ledger(dsn) as ledger:
        results = await ledger.execute(
            opening("new"), topup("new", 70), consume("account-0", 5), consume("account-0", 6)
        )
        assert ["opened", "posted", "posted", "posted"] == words_of(results)
    rows, names = await rows_in(dsn), await names_beside(dsn)

    async with connected(dsn) as witness:
        with pytest.raises(LossNotAccepted) as refused:
            await back(dsn, backup.id, 2, equipment)

        assert 1 == await witness.fetchval("SELECT 1"), "nobody was thrown out"
    assert 3 == refused.value.count
    assert "3 transactions with a sum of +59 minor units, and 1 accounts opened" in str(
        refused.value
    )
    assert "--accept-loss 3" in str(refused.value)
    assert rows == await rows_in(dsn)
    assert names == await names_beside(dsn)
    assert "restore.started" not in told.names, "it was refused before anything was restored"


async def test_what_comes_while_it_is_restored_is_counted_and_refused(
    dsn: str, equipment: Equipment, told: Told
) -> None:
    """The last transaction comes when everything has been counted, but nothing was closed."""
    await fill_ledger(dsn, accounts=1, spends=1)
    backup = await backed_up(dsn, equipment)
    await spend_in(dsn, ["account-0"], 1)
    told.at = lambda event: (
        run(lambda: spend_in(dsn, ["account-0"], 1)) if event == "rollback.closing" else None
    )

    with pytest.raises(LossNotAccepted) as refused:
        await back(dsn, backup.id, 1, equipment)

    assert 2 == refused.value.count
    assert "rollback.reopened" == told.names[-1]
    told.at = lambda _: None
    await spend_in(dsn, ["account-0"], 1)
    assert not [each for each in await names_beside(dsn) if "scratch" in each or "_before_" in each]


async def test_ledgers_that_have_parted_are_compared_to_where_they_did(
    dsn: str, equipment: Equipment
) -> None:
    """The newer backup has more transactions than the live ledger, and not those that it has."""
    await fill_ledger(dsn, accounts=2, spends=1)
    older = await backed_up(dsn, equipment)
    await spend_in(dsn, ["account-0"], 9)
    newer = await backed_up(dsn, equipment)
    await back(dsn, older.id, 9, equipment)
    await spend_in(dsn, ["account-0"], 4, amount=7)

    with pytest.raises(LossNotAccepted) as refused:
        await back(dsn, newer.id, 3, equipment)
    await back(dsn, newer.id, 4, equipment)

    assert "4 transactions with a sum of -28 minor units" in str(refused.value)


async def test_rows_are_counted_where_nobody_knows_what_they_mean(
    access_dsn: str, equipment: Equipment
) -> None:
    occasion = Occasion(service="access", reason="test")
    backup = await take_backup(access_dsn, occasion, equipment)
    async with connected(access_dsn) as connection:
        await connection.execute("CREATE TABLE more AS SELECT generate_series(1, 5)")
        await connection.execute("UPDATE health_probe SET probed_at = now() + interval '1 s'")

    with pytest.raises(LossNotAccepted, match=r"at least 6 rows \(1 in .*probe, 5 in .*more\)"):
        await roll_back(access_dsn, "access", backup.id, accept_loss=5, equipment=equipment)
    with pytest.raises(BackupMissing, match="it is of access"):
        await roll_back(access_dsn, "credits", backup.id, accept_loss=9, equipment=equipment)
    await roll_back(access_dsn, "access", backup.id, accept_loss=6, equipment=equipment)

    async with connected(access_dsn) as connection:
        assert await connection.fetchval("SELECT to_regclass('more')") is None
    await drop_asides(access_dsn)


async def test_a_damaged_backup_is_not_gone_back_to(dsn: str, equipment: Equipment) -> None:
    backup = await backed_up(dsn, equipment)
    path = equipment.catalogue.path(backup.id, DUMP)
    data = bytearray(path.read_bytes())
    data[-200] ^= 1
    path.write_bytes(data)

    with pytest.raises(BackupChanged):
        await back(dsn, backup.id, 0, equipment)


async def test_what_a_swap_would_break_is_refused_with_the_reason(
    dsn: str, equipment: Equipment
) -> None:
    backup = await backed_up(dsn, equipment)
    async with connected(dsn, server_settings={"application_name": "pg_dump"}):
        with pytest.raises(DatabaseInUse, match="pg_dump"):
            await back(dsn, backup.id, 0, replace(equipment, clock=HastyClock()))
    async with connected(dsn) as runner:
        assert await MigrationStore(runner).try_lock()
        with pytest.raises(DatabaseInUse, match="a run of migrations"):
            await back(dsn, backup.id, 0, equipment)
    async with connected(dsn) as connection:
        await connection.execute(
            "CREATE SUBSCRIPTION elsewhere CONNECTION '' PUBLICATION p"
            " WITH (connect = false, slot_name = NONE)"
        )
        with pytest.raises(RollbackRefused, match="subscription elsewhere belongs to it"):
            await back(dsn, backup.id, 0, equipment)
        await connection.execute("DROP SUBSCRIPTION elsewhere")
    missing = beside(dsn, "not_there")
    with pytest.raises(RollbackRefused, match="no such database"):
        await back(missing, backup.id, 0, equipment)


async def test_swap_that_cannot_be_written_down_is_done_all_the_same(
    dsn: str, equipment: Equipment, told: Told
) -> None:
    async with connected(dsn) as connection:
        await connection.execute(
            "CREATE TRIGGER refusing BEFORE INSERT ON tollkeeper_migration_log"
            " EXECUTE FUNCTION refuse_migration_log_change()"
        )
    backup = await backed_up(dsn, equipment)
    way = Back(
        dsn, SERVICE, equipment, run_id=UUID(int=1), tell=equipment.log, accept_loss=0
    )  # fmt: skip

    gone = await way.go(Destination(backup=backup.id))

    assert gone.swapped is not None
    assert backup.id == gone.swapped.backup
    assert "rollback.not_noted" in told.names


# Under writers -----------------------------------------------------------------------------------


async def test_no_writer_writes_what_is_not_counted(other_dsn: str, equipment: Equipment) -> None:
    """Writers that come back at once write until it is closed, and from when it is open again."""
    await fill_ledger(other_dsn, accounts=4, spends=1)
    backup = await backed_up(other_dsn, equipment)
    leaving = asyncio.Event()
    written, after = 0, asyncio.Event()

    async def write(number: int) -> None:
        nonlocal written
        while not leaving.is_set():
            with suppress(OSError, *CUT_OFF):
                async with connected(other_dsn) as connection:
                    while not leaving.is_set():
                        await connection.execute(WRITE, f"account-{number % 4}")
                        written += 1
                        after.set()
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for number in range(6):
            group.create_task(write(number))
        await after.wait()
        done = await roll_back(
            other_dsn, SERVICE, backup.id, accept_loss=ANY_LOSS, equipment=equipment
        )
        after.clear()
        await after.wait()
        leaving.set()

    live = await versions_in(other_dsn)
    async with connected(beside(other_dsn, "postgres")) as connection:
        await connection.execute(f'ALTER DATABASE "{done.kept}" ALLOW_CONNECTIONS true')
    kept = await versions_in(beside(other_dsn, done.kept))
    booked = int(backup.snapshot.facts["booked"])
    assert done.lost == kept - booked > 0
    assert live > booked
    # A commit whose answer was cut off is written, and not known to its writer: one for each.
    assert 0 <= (kept - booked) + (live - booked) - written <= 6


CUT_OFF = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
WRITE = """
WITH moved AS (
    UPDATE accounts
    SET version = version + 1, balance = balance + 1, head_hash = sha256(head_hash)
    WHERE account_id = $1
    RETURNING shard, account_id, version, balance, reserved, head_hash
)
INSERT INTO credit_transactions (
    shard, account_id, sequence, balance, reserved, hash, fingerprint, amount, kind, transaction_id,
    created_at
)
SELECT
    shard, account_id, version, balance, reserved, head_hash, head_hash, 1, 'topup',
    gen_random_uuid(), now()
FROM moved
"""


async def versions_in(dsn: str) -> int:
    async with connected(dsn) as connection:
        versions, rows = await connection.fetchrow(
            "SELECT (SELECT sum(version) FROM accounts)::bigint,"
            " (SELECT count(*) FROM credit_transactions)"
        )
    assert versions == rows
    return int(rows)


# Killed ------------------------------------------------------------------------------------------


@asynccontextmanager
async def halted(dsn: str, folder: Path, *arguments: str) -> AsyncIterator[None]:
    """Run the tool up to a point and kill it there."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(PROGRAM),
        dsn,
        str(folder),
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert b"halted\n" == await process.stdout.readline()
    finally:
        process.kill()
        await process.wait()
    yield


@pytest.mark.parametrize("point", ["backup.started", "advance", "end"])
async def test_a_killed_backup_is_none_and_the_next_one_works(
    credits_dsn: str, tmp_path: Path, point: str
) -> None:
    folder = tmp_path / "backups"
    async with halted(credits_dsn, folder, "take", point):
        pass

    equipment = equipment_in(folder)
    assert [] == list(equipment.catalogue.list())
    backup = await backed_up(credits_dsn, equipment)
    assert [backup.id] == [each.backup.id for each in equipment.catalogue.list()]


@pytest.mark.parametrize("point", ["restore.filled", "rollback.counted", "rollback.swapped"])
async def test_a_killed_rollback_is_gone_on_with(
    dsn: str, equipment: Equipment, told: Told, point: str
) -> None:
    await fill_ledger(dsn, accounts=1, spends=1)
    backup = await backed_up(dsn, equipment)
    await spend_in(dsn, ["account-0"], 2)
    rows = await rows_in(dsn)
    was_swapped, was_closed = point == "rollback.swapped", point == "rollback.counted"
    folder = str(equipment.catalogue.folder)
    async with halted(dsn, Path(folder), "roll_back", point, backup.id):
        pass

    if was_closed:
        with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
            await asyncpg.connect(dsn)
        async with connected(beside(dsn, "postgres")) as connection:
            note = await connection.fetchval(
                "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = $1",
                database_in(dsn),
            )
        assert "`tollkeeper migrate rollback credits --reopen` opens it" in note
    assert was_closed == await reopen_database(dsn, SERVICE, equipment)
    if was_swapped:
        done = await undo_rollback(dsn, SERVICE, accept_loss=0, equipment=equipment)
        assert 0 == done.lost
    assert rows == await rows_in(dsn)

    await back(dsn, backup.id, 2, equipment)

    assert not [each for each in await names_beside(dsn) if "scratch" in each]


async def test_a_rollback_goes_on_over_a_database_that_was_left_closed(
    dsn: str, equipment: Equipment, told: Told
) -> None:
    backup = await backed_up(dsn, equipment)
    folder = equipment.catalogue.folder
    async with halted(dsn, folder, "roll_back", "rollback.counted", backup.id):
        pass

    await back(dsn, backup.id, 0, equipment)

    assert "rollback.reopened" in told.names
    await rows_in(dsn)


async def test_a_cancelled_rollback_opens_what_it_has_closed(
    dsn: str, equipment: Equipment, told: Told
) -> None:
    backup = await backed_up(dsn, equipment)
    rolling = asyncio.create_task(back(dsn, backup.id, 0, equipment))

    def leave(event: str) -> None:
        if event == "rollback.counted":
            rolling.cancel()

    told.at = leave
    with pytest.raises(asyncio.CancelledError):
        await rolling

    assert "rollback.reopened" in told.names
    await rows_in(dsn)


# A full disk -------------------------------------------------------------------------------------


def on_a_small_disk(dsn: str, folder: Path, action: str) -> dict[str, object]:
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, str(PROGRAM), dsn, str(folder), action, "begin dumping"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert 0 == done.returncode, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("action", "error"),
    [("full", "DiskFull: the disk of"), ("short", "SpaceShort: a backup")],
)
def test_a_full_disk_leaves_nothing_but_what_was_there(
    credits_dsn: str, tmp_path: Path, action: str, error: str
) -> None:
    said = on_a_small_disk(credits_dsn, tmp_path / "disk", action)

    assert str(said["error"]).startswith(error)
    assert ["filler"] == said["left"]
