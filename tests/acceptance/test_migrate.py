"""`tollkeeper migrate` as an operator meets it: up, backups, and the ways back."""

import asyncio
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tests.acceptance.conftest import (
    Finished,
    clean_environment,
    execute,
    inside,
    running_service,
    tollkeeper,
)
from tests.conftest import Databases

from tollkeeper.migrate.model import DATABASES
from tollkeeper.migrate.service import shipped_migrations


class Operator:
    """Runs the command on databases of his own; a place for backups beside them."""

    def __init__(self, dsns: Mapping[str, str], folder: Path) -> None:
        self.dsns = dsns
        self.folder = folder

    def __call__(self, *arguments: str, code: int = 0, **more: str) -> Finished:
        environment = {
            **{f"TOLLKEEPER_{name.upper()}_DSN": dsn for name, dsn in self.dsns.items()},
            "TOLLKEEPER_DATA": str(self.folder),
            **more,
        }
        done = inside("migrate", *arguments, environment=environment)
        assert code == done.code, done.err + done.out
        assert "Traceback" not in done.err
        return done

    def asked(self, *arguments: str) -> Any:
        """Return what a command prints as JSON."""
        return json.loads(self(*arguments, "--json").out)

    def backups(self, database: str) -> list[str]:
        """Return the ids of its backups, the oldest first."""
        found = self.asked("backups", database)
        return [each["id"] for each in found]


@pytest.fixture
def operator(databases: Databases, tmp_path: Path) -> Iterator[Operator]:
    """Two empty databases: one with rows of meaning, one without."""
    with databases.fresh() as credits_dsn, databases.fresh() as cdefnet_dsn:
        yield Operator({"credits": credits_dsn, "cdefnet": cdefnet_dsn}, tmp_path)


@pytest.fixture
def migrated(databases: Databases, tmp_path: Path) -> Iterator[Operator]:
    """The same with all migrations."""
    with databases.fresh("credits") as credits_dsn, databases.fresh("cdefnet") as cdefnet_dsn:
        yield Operator({"credits": credits_dsn, "cdefnet": cdefnet_dsn}, tmp_path)


def value(dsn: str, query: str) -> object:
    async def ask() -> object:
        connection = await asyncpg.connect(dsn)
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()

    return asyncio.run(ask())


LAST = {name: len(shipped_migrations(name)) for name in DATABASES}


def test_from_nothing_to_the_last_version_and_nothing_twice(operator: Operator) -> None:
    planned = operator.asked("plan", "credits")
    dry = operator("up", "--dry-run")
    untouched = operator.asked("status")
    first = operator("up", "credits", "--to", "2")
    rest = operator.asked("up")
    again = operator("up")

    assert [LAST["credits"]] == [len(each["files"]) for each in planned]
    assert "left out: access, shadow, locator (TOLLKEEPER_ACCESS_DSN" in dry.err
    assert [0, 0] == [each["version"] for each in untouched]
    assert "credits/0002_holds.sql: applied in" in first.err
    outcomes = {each["database"]: each for each in rest["databases"]}
    assert (2, LAST["credits"]) == (outcomes["credits"]["from"], outcomes["credits"]["to"])
    assert [outcomes["credits"]["backup"]] == operator.backups("credits")
    assert (None, []) == (outcomes["cdefnet"]["backup"], operator.backups("cdefnet"))
    assert 2 == again.out.count("up to date")
    log = Path(rest["log"]).read_text(encoding="utf-8")
    events = [json.loads(line) for line in log.splitlines()]
    told = [each for each in events if each["event"] == "migrate.statement"]
    assert all({"duration_ms", "lock_wait_ms", "statement"} <= each.keys() for each in told)
    assert sum(len(each["files"]) for each in outcomes.values()) == sum(
        each["event"] == "migrate.applied" for each in events
    )
    assert "backup.verified" in [each["event"] for each in events]


def test_run_stops_at_the_first_that_fails_and_goes_on_from_there(operator: Operator) -> None:
    execute(operator.dsns["credits"], "CREATE TABLE accounts ()")

    failed = operator("up", code=13)

    assert "credits/0001_ledger.sql, line" in failed.err
    assert "cdefnet" in failed.out
    assert "not touched" in failed.out
    assert 0 == value(
        operator.dsns["cdefnet"], "SELECT count(*) FROM pg_class WHERE relname = 'health_probe'"
    )
    execute(operator.dsns["credits"], "DROP TABLE accounts")
    operator("up")
    assert [] == [each["pending"] for each in operator.asked("status") if each["pending"]]


def test_nothing_is_changed_while_one_of_several_cannot_be(operator: Operator) -> None:
    operator("up", "cdefnet")
    execute(
        operator.dsns["cdefnet"],
        "ALTER TABLE tollkeeper_migration_log DISABLE TRIGGER ALL;"
        "UPDATE tollkeeper_migration_log SET checksum = repeat('0', 64), digest = repeat('0', 64)",
    )

    failed = operator("up", "--json", code=11)

    said = json.loads(failed.out)
    assert ["cdefnet"] == [each["database"] for each in said["databases"] if each["failed"]]
    assert ["credits"] == said["not_touched"]
    assert 0 == value(operator.dsns["credits"], "SELECT count(*) FROM pg_tables"
                      " WHERE schemaname = 'public'")  # fmt: skip


def test_status_says_what_is_pending_by_its_exit_code(operator: Operator) -> None:
    """In a process of its own, as a deployment asks."""
    environment = {"TOLLKEEPER_CDEFNET_DSN": operator.dsns["cdefnet"]}

    before = tollkeeper("migrate", "status", "cdefnet", "--check", environment=environment)
    operator("up", "cdefnet")
    after = tollkeeper("migrate", "status", "cdefnet", "--check", environment=environment)

    assert (10, 0) == (before.code, after.code)


def test_ledger_goes_back_to_a_backup_and_forth_again(
    migrated: Operator, databases: Databases, tmp_path: Path
) -> None:
    """What would be lost is said, must be accepted to the number, and can be undone."""
    with (
        databases.fresh("access") as access_dsn,
        running_service(migrated.dsns["credits"], access_dsn, tmp_path) as service,
    ):

        def call(*arguments: str) -> Finished:
            return inside(
                "credits", *arguments,
                environment={"TOLLKEEPER_URL": service.url, "TOLLKEEPER_API_KEY": service.api_key},
            )  # fmt: skip

        call("open", "ann", "--tenant", "acme")
        call("topup", "ann", "1000")
        migrated("backup", "credits", "--deep")
        [backup] = migrated.backups("credits")
        call("consume", "ann", "100")
        call("consume", "ann", "20")

        refused = migrated("rollback", "credits", "--backup", backup, "--accept-loss", "1", code=16)
        assert "2 transactions with a sum of -120 minor units" in refused.err
        assert "--accept-loss 2" in refused.err
        assert 880 == value(migrated.dsns["credits"], "SELECT balance FROM accounts")

        done = migrated("rollback", "credits", "--backup", backup, "--accept-loss", "2")
        assert "kept as" in done.err
        assert 1_000 == value(migrated.dsns["credits"], "SELECT balance FROM accounts")
        assert "restored" == value(
            migrated.dsns["credits"],
            "SELECT happening FROM tollkeeper_migration_log ORDER BY number DESC LIMIT 1",
        )
        assert 0 == call("consume", "ann", "300").code  # the service has found it by itself

        migrated("rollback", "credits", "--undo", code=16)
        migrated("rollback", "credits", "--undo", "--accept-loss", "1")
        assert 880 == value(migrated.dsns["credits"], "SELECT balance FROM accounts")
        assert 0 == call("verify").code
    drop_asides(migrated.dsns["credits"])


def drop_asides(dsn: str) -> None:
    """Remove the databases that rollbacks have put aside."""

    async def drop() -> None:
        connection = await asyncpg.connect(dsn, database="postgres")
        database = dsn.partition("?")[0].rpartition("/")[2]
        for row in await connection.fetch(
            "SELECT datname FROM pg_database WHERE datname LIKE $1 || '\\_%\\_%'", database
        ):
            await connection.execute(f'DROP DATABASE "{row["datname"]}"')
        await connection.close()

    asyncio.run(drop())


def test_last_run_is_taken_back_by_its_own_sql(migrated: Operator) -> None:
    execute(
        migrated.dsns["cdefnet"],
        "SELECT report_indicator(sha256('a'), 'ip', sha256('b'), 0.5, now(), '1 day')",
    )

    refused = migrated("rollback", "cdefnet", code=16)
    done = migrated.asked("rollback", "cdefnet", "--accept-loss", "2")

    assert "threat_indicators: 1" in refused.err
    assert (2, None) == (done["lost"], done["backup"])
    assert 2 == len(migrated.backups("cdefnet"))
    migrated("up", "cdefnet")
    [status] = migrated.asked("status", "cdefnet")
    assert (LAST["cdefnet"], []) == (status["version"], status["log_faults"])
    assert "taken back" in migrated("history", "cdefnet").out
    opened = migrated.asked("rollback", "cdefnet", "--reopen")
    assert {"database": "cdefnet", "was_closed": False} == opened


def test_pending_files_are_rehearsed_on_a_copy(operator: Operator) -> None:
    operator("up", "credits", "--to", "4")

    rehearsed = operator("up", "credits", "--rehearse")

    assert "credits/0005_fewer_key_partitions.sql" in rehearsed.out
    assert f"credits/{LAST['credits']:04}_" in rehearsed.out
    [status] = operator.asked("status", "credits")
    assert 4 == status["version"]
    assert 1 == len(operator.backups("credits"))
    assert 0 == value(
        operator.dsns["credits"], "SELECT count(*) FROM pg_database WHERE datname LIKE '%scratch%'"
    )


def test_damaged_backup_is_found_said_and_never_used(migrated: Operator) -> None:
    migrated("backup", "credits")
    [backup] = migrated.backups("credits")
    [dump] = (migrated.folder / "backups").glob(f"{backup}*.dump")
    content = bytearray(dump.read_bytes())
    content[len(content) // 2] ^= 1
    dump.write_bytes(content)

    migrated("verify", code=15)

    assert "DAMAGED" in migrated("backups").out
    migrated("rollback", "credits", "--backup", backup, code=15)
    migrated("restore", backup, "--to", "never", code=15)


def test_backup_becomes_a_new_database_and_is_pruned_only_by_consent(
    migrated: Operator,
) -> None:
    migrated("backup", "cdefnet", "--keep", "--reason", "before the talk")
    [backup] = migrated.backups("cdefnet")
    name = f"copy_of_{backup.rpartition('-')[2]}"

    migrated("restore", backup, "--to", name)
    migrated("restore", backup, "--to", name, code=14)
    migrated("restore", "nothing", "--to", "other", code=15)

    assert "no backup's time is over" in migrated("prune", "--confirm").err
    migrated("keep", backup, "--off")
    assert "before the talk" in migrated("backups").out
    execute(migrated.dsns["cdefnet"], f"DROP DATABASE {name}")


def test_empty_state_is_said(operator: Operator) -> None:
    assert "no backups in" in operator("backups").err
    assert "no backups in" in operator("verify").err
    assert "nothing yet" in operator("history").err
    assert [] == operator.asked("backups")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("rollback", "all"), "name one database"),
        (("up", "--to", "3"), "name the database"),
        (("up", "credits", "--to", "9999"), "give one of"),
        (("up", "--dry-run", "--rehearse"), "give one of"),
        (("rollback", "credits", "--undo", "--to", "1"), "give one of"),
        (("verify", "--deep", "--checksum"), "give one of"),
        (("rollback", "credits", "--undo"), "no rollback of"),
        (("keep", "../../etc/passwd"), "cannot be used"),
        (("up", "nothing"), "is not one of"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_meant_is_said(
    migrated: Operator, arguments: tuple[str, ...], reason: str
) -> None:
    environment = {
        **{f"TOLLKEEPER_{name.upper()}_DSN": dsn for name, dsn in migrated.dsns.items()},
        "TOLLKEEPER_DATA": str(migrated.folder),
    }

    done = inside("migrate", *arguments, environment=environment)

    assert (True, True) == (done.code != 0, reason in done.err), done.err


def test_two_names_for_one_database_are_refused(migrated: Operator) -> None:
    same = Operator({"credits": migrated.dsns["credits"], "access": migrated.dsns["credits"]},
                    migrated.folder)  # fmt: skip

    assert "name the same database" in same("status", code=1).err


def test_who_ends_it_gets_what_ctrl_c_gets(operator: Operator) -> None:
    """Kubernetes and systemd send SIGTERM: what was begun is taken back then, too."""
    environment = {"TOLLKEEPER_CREDITS_DSN": operator.dsns["credits"]}

    async def end_while_it_waits() -> int:
        other_runner = await asyncpg.connect(operator.dsns["credits"])
        await other_runner.execute("SELECT pg_advisory_lock(1953459308, 1835624306)")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tollkeeper", "migrate", "up", "credits"),
            env=clean_environment({**environment, "TOLLKEEPER_DATA": str(operator.folder)}),
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr is not None
        while b"waiting for another runner" not in await process.stderr.readline():
            assert not process.stderr.at_eof()
        process.terminate()
        await process.communicate()
        await other_runner.close()
        return process.returncode or 0

    assert 130 == asyncio.run(end_while_it_waits())
    [log] = (operator.folder / "backups" / "runs").iterdir()
    assert "migrate.run_failed" in log.read_text()


def test_database_that_was_never_migrated_is_backed_up_as_it_is(operator: Operator) -> None:
    operator("backup", "credits", "--deep")

    assert "deep" in operator("backups").out


def test_program_reads_one_document_and_nothing_is_told_beside_it(operator: Operator) -> None:
    done = operator("up", "cdefnet", "--json")
    taken = operator("backup", "cdefnet", "--json")

    assert ["", ""] == [done.err, taken.err]
    assert "cdefnet" == json.loads(done.out)["databases"][0]["database"]
    assert "cdefnet" == json.loads(taken.out)[0]["database"]
