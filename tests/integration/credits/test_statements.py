"""What the ledger asks of PostgreSQL: how many statements, which plans, locks in which order."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest
from tests.alerts import at, set_alerts
from tests.ledger import Ledger, consume, opening, running_ledger, topup, words_of

from tollkeeper.credits.model import KEY_RETENTION
from tollkeeper.credits.store import SESSION_SETTINGS, LedgerStore
from tollkeeper.database.connect import connector
from tollkeeper.database.driver import Connection
from tollkeeper.database.pool import Pool
from tollkeeper.database.queries import load_queries
from tollkeeper.kernel.ids import AccountId, shard_of
from tollkeeper.wiring import CREDITS_ROLE

SQL = load_queries("tollkeeper.credits")
NAMES = {text: name for name, text in SQL.items()}
DRIVERS_OWN = ("typeinfo_tree", "current_setting('jit')", "set_config('jit'")


@pytest.fixture
async def session(credits_dsn: str) -> AsyncIterator[Connection]:
    """A connection of the ledger's pool."""
    connection = await connector(credits_dsn, role=CREDITS_ROLE, settings=SESSION_SETTINGS)()
    yield connection
    await connection.close()


async def listen(pool: Pool, heard: list[str]) -> None:
    """Write the name of every statement that the pool's one connection sends into `heard`.

    Except what the driver asks once per connection: how a type that it has not met is put together.
    """

    def note(record: asyncpg.connection.LoggedQuery) -> None:
        if not any(mark in record.query for mark in DRIVERS_OWN):
            heard.append(NAMES.get(record.query, record.query))

    async with pool.connection() as connection:
        assert isinstance(connection, asyncpg.Connection)
        connection.add_query_logger(note)


@pytest.fixture
async def heard(credits_dsn: str) -> AsyncIterator[tuple[Ledger, list[str]]]:
    """A ledger with one connection, and what it says to the server."""
    heard: list[str] = []
    async with running_ledger(credits_dsn, lanes=1) as ledger:
        ledger.pool.resize(1)
        await listen(ledger.pool, heard)
        await ledger.open_with(100, "ann", "bob")
        heard.clear()
        yield ledger, heard


async def test_an_uncontended_batch_is_two_statements(heard: tuple[Ledger, list[str]]) -> None:
    ledger, statements = heard
    await ledger.execute(*(consume(name, 1) for name in ("ann", "bob") for _ in range(50)))

    assert ["load", "commit"] == statements


async def test_thresholds_are_read_only_by_a_batch_that_comes_near_one(
    heard: tuple[Ledger, list[str]],
) -> None:
    ledger, statements = heard
    await set_alerts(ledger, "ann", at(50, 10))
    said = []
    for amount in (40, 1, 20, 1):  # to exactly what re-arms, below that, below the threshold, on
        statements.clear()
        await ledger.execute(consume("ann", amount), consume("bob", 1))
        # The end of what was said before is heard late.
        said.append([each for each in statements if each != "COMMIT;"])

    near = ["load", "thresholds", "commit"]
    crossing = ["load", "thresholds", "commit_with_alerts"]
    assert [["load", "commit"], near, crossing, near] == said


def test_a_commit_with_alerts_is_a_commit() -> None:
    end = "\nSELECT account_id FROM landed;"

    assert SQL["commit"].endswith(end)
    assert SQL["commit_with_alerts"].startswith(SQL["commit"].removesuffix(end) + ",\n")


async def test_a_batch_that_writes_nothing_is_one_statement(
    heard: tuple[Ledger, list[str]],
) -> None:
    ledger, statements = heard
    await ledger.execute(consume("ann", 1_000), consume("nobody", 1), opening("ann"))

    assert ["load"] == statements


async def test_a_replay_is_two_statements_and_no_commit(heard: tuple[Ledger, list[str]]) -> None:
    ledger, statements = heard
    await ledger.execute(topup("ann", 100, "first"), topup("bob", 100, "first"))

    assert ["load", "transactions_by_key"] == statements


async def test_a_retry_takes_the_locks_before_it_looks(
    heard: tuple[Ledger, list[str]], owner: Connection
) -> None:
    ledger, statements = heard
    # Whoever waits for a lock longer than `lock_timeout` is put back and takes the locks.
    async with ledger.pool.connection() as connection:
        await connection.execute("SET lock_timeout = '20ms'")
    async with owner.transaction():
        await owner.execute("UPDATE accounts SET version = version WHERE account_id = 'ann'")
        call = asyncio.ensure_future(ledger.execute(consume("ann", 1)))
        async with asyncio.timeout(10):
            while ledger.retries("database") == 0:
                await asyncio.sleep(0.001)
    results = await call
    said = statements[statements.index("load") :]

    assert ["posted"] == words_of(results)
    assert ["load", "commit"] == said[:2]
    assert ["BEGIN;", "lock_accounts", "load", "commit", "COMMIT;"] == said[-5:]


async def test_locks_are_taken_in_the_order_of_shard_and_account(
    ledger: Ledger, session: Connection, owner: Connection, credits_dsn: str
) -> None:
    """With the n-th account of the order held by another, exactly the ones before it are locked."""
    names = sorted((f"account-{n}" for n in range(12)), key=lambda name: (shard_of(name), name))
    await ledger.open_with(10, *names)
    held = names[6]
    prober = await connector(credits_dsn)()
    blocked: asyncio.Future[None] | None = None
    async with owner.transaction():
        await owner.execute("SELECT 1 FROM accounts WHERE account_id = $1 FOR UPDATE", held)
        async with session.transaction():
            backwards = {AccountId(name): shard_of(name) for name in reversed(names)}
            blocked = asyncio.ensure_future(LedgerStore().lock_accounts(session, backwards))
            await wait_until_blocked(prober, session.get_server_pid())
            free = await prober.fetch(
                "SELECT account_id FROM accounts ORDER BY shard, account_id FOR UPDATE SKIP LOCKED"
            )
            await owner.execute("ROLLBACK AND CHAIN")
            await blocked
    await prober.close()

    assert names[7:] == [row["account_id"] for row in free]


async def test_the_commit_takes_its_row_locks_in_the_same_order(
    ledger: Ledger, owner: Connection, credits_dsn: str
) -> None:
    names = sorted((f"account-{n}" for n in range(12)), key=lambda name: (shard_of(name), name))
    await ledger.open_with(10, *names)
    prober = await connector(credits_dsn)()
    async with running_ledger(credits_dsn, lanes=1) as other:
        async with owner.transaction():
            await owner.execute("SELECT 1 FROM accounts WHERE account_id = $1 FOR UPDATE", names[6])
            call = asyncio.ensure_future(
                other.execute(*(consume(name, 1) for name in reversed(names)))
            )
            async with asyncio.timeout(10):
                while not (pid := await blocked_by(prober, owner.get_server_pid())):
                    await asyncio.sleep(0.002)
            free = await prober.fetch(
                "SELECT account_id FROM accounts ORDER BY shard, account_id FOR UPDATE SKIP LOCKED"
            )
        assert ["posted"] * 12 == words_of(await call)
    await prober.close()

    assert pid
    assert names[7:] == [row["account_id"] for row in free]


async def blocked_by(prober: Connection, blocker: int) -> int:
    pid: int | None = await prober.fetchval(
        "SELECT pid FROM pg_stat_activity WHERE $1 = ANY(pg_blocking_pids(pid))", blocker
    )
    return pid or 0


async def wait_until_blocked(prober: Connection, pid: int) -> None:
    async with asyncio.timeout(10):
        while not await prober.fetchval("SELECT cardinality(pg_blocking_pids($1))", pid):
            await asyncio.sleep(0.002)


def nodes(plan: dict[str, object]) -> Iterator[dict[str, object]]:
    yield plan
    children = plan.get("Plans", [])
    assert isinstance(children, list)
    for child in children:
        yield from nodes(child)


async def plan_of(connection: Connection, name: str, *arguments: str) -> list[dict[str, object]]:
    """Return the nodes of the generic plan of a query; arguments are SQL text."""
    await connection.execute(f"PREPARE {name} AS {SQL[name]}")
    given = f"({', '.join(arguments)})" if arguments else ""
    text = await connection.fetchval(f"EXPLAIN (FORMAT JSON, COSTS OFF) EXECUTE {name}{given}")
    return list(nodes(json.loads(text)[0]["Plan"]))


EMPTY_COMMIT = ["'{}'"] * 3 + ["now()"] + ["'{}'"] * 2
SOME_ID = "'01978a3c-5f00-7abc-8def-0123456789ab'"
EMPTY_LOAD = ["'{}'"] * 2 + [f"'{KEY_RETENTION.total_seconds():.0f} s'"]
STRETCH = ["1", "'ann'", "0", "1", "'ann'"]
STATEMENTS = {
    "load": EMPTY_LOAD,
    "lock_accounts": ["'{}'", "'{}'"],
    "commit": EMPTY_COMMIT,
    "commit_with_alerts": [*EMPTY_COMMIT, *["'{}'"] * 3],
    "transactions_by_key": ["'{}'"] * 4,
    "account": ["1", "'ann'"],
    "history": ["1", "'ann'", "0", "100"],
    "accounts_of": [*STRETCH, "NULL", "200"],
    "chains": STRETCH,
    "holds": ["'{}'"],
    "open_holds": ["'{}'", "now()"],
    "hold": ["1", SOME_ID],
    "account_holds": ["1", "'ann'", SOME_ID, "100"],
    "has_side_rows": STRETCH,
    "wrong_expiries": [*STRETCH, "100"],
    "refundables": ["'{}'", "'{}'"],
    "transaction": ["1", SOME_ID, "now()"],
    "due_accounts": ["100"],
    "thresholds": ["'{}'"],
    "shown_thresholds": ["1", "'ann'"],
    "watched_account": ["1", "'ann'"],
    "account_for_alerts": ["1", "'ann'"],
    "set_thresholds": ["1", "'ann'", "1", "1", "now()", "'{}'", "'{}'", "'{}'"],
    "alerts_of_account": ["1", "'ann'", "NULL", SOME_ID, "'open'", "100"],
    "alert": ["1", SOME_ID, "NULL"],
    "acknowledge_alert": ["1", SOME_ID, "NULL", SOME_ID, "NULL"],
}
OF_ALL_SHARDS = {
    "alerts_of_tenant": ["'acme'", SOME_ID, "'open'", "100"],
    "alerts_standing": [SOME_ID, "false", "100"],
    "alerts_of_all": [SOME_ID, "true", "100"],
    "count_open_alerts": [],
}


@pytest.fixture(params=[False, True], ids=["unknown", "analyzed"])
async def statistics(request: pytest.FixtureRequest, ledger: Ledger, owner: Connection) -> None:
    """Either the server knows nothing of the tables, or it knows that they are tiny."""
    if request.param:
        await ledger.open_with(100, *(f"account-{number}" for number in range(50)))
        await owner.execute("ANALYZE")


@pytest.mark.usefixtures("statistics")
@pytest.mark.parametrize("name", STATEMENTS)
async def test_every_statement_finds_its_rows_by_index_however_little_is_known_of_the_table(
    session: Connection, name: str
) -> None:
    found = await plan_of(session, name, *STATEMENTS[name])
    kinds = {str(node["Node Type"]) for node in found}

    assert {"Index Scan", "Index Only Scan"} & kinds
    assert not {"Seq Scan", "Bitmap Heap Scan", "Hash Join", "Merge Join", "Gather"} & kinds
    for node in found:
        if node["Node Type"] in {"Index Scan", "Index Only Scan"}:
            # Partitions have an index of their own name; all begin with the shard, but for those
            # that find a transaction or an alert by its id alone.
            condition = str(node.get("Index Cond", "shard"))
            assert any(name in condition for name in ("shard", "transaction_id", "(alert_id ="))


@pytest.mark.usefixtures("statistics")
@pytest.mark.parametrize("name", OF_ALL_SHARDS)
async def test_alerts_are_listed_in_the_order_of_an_index(session: Connection, name: str) -> None:
    found = await plan_of(session, name, *OF_ALL_SHARDS[name])
    kinds = {str(node["Node Type"]) for node in found}

    assert {"Index Scan", "Index Only Scan"} & kinds
    assert not {"Seq Scan", "Bitmap Heap Scan", "Sort", "Gather"} & kinds
    if name == "alerts_of_tenant":
        assert any("tenant_id" in str(node.get("Index Cond")) for node in found)


@pytest.mark.usefixtures("statistics")
@pytest.mark.parametrize("name", ["wrong_holds", "wrong_refunds"])
async def test_a_stretch_is_compared_without_reading_beyond_it(
    session: Connection, name: str
) -> None:
    """A full join hashes or merges; what it joins is found by index."""
    found = await plan_of(session, name, *STRETCH, "100")
    scans = [node for node in found if "Scan" in str(node["Node Type"])]
    conditions = [str(node["Index Cond"]) for node in scans if "Index Cond" in node]

    assert {"Index Scan", "Index Only Scan", "Subquery Scan"} >= {
        str(node["Node Type"]) for node in scans
    }
    assert len(conditions) >= 2
    assert all("shard" in each or "transaction_id" in each for each in conditions)


async def test_a_key_is_looked_for_in_the_partitions_of_its_lifetime_only(
    session: Connection,
) -> None:
    """Those of the 25 hours before and tomorrow's; more only if the clock was set back."""
    one_key = r"ARRAY[(1, 'ann', 1, '\x00')::key_place]"
    await session.execute(f"PREPARE looked AS {SQL['load']}")
    plan = await session.fetchval(
        "EXPLAIN (ANALYZE, FORMAT JSON, COSTS OFF)"
        f" EXECUTE looked({EMPTY_LOAD[0]}, {one_key}, {EMPTY_LOAD[2]})"
    )
    looked_in = [
        node
        for node in nodes(json.loads(plan)[0]["Plan"])
        if str(node.get("Relation Name", "")).startswith("idempotency_keys_")
        and node["Actual Loops"]
    ]

    assert len(looked_in) in {2, 3}


OF_THE_AUDIT = {
    "checkpoint": ["1"],
    "checkpoints_after": ["0", "100"],
    "covering_leaf": ["1", "'ann'", "1"],
    "hash_at": ["1", "'ann'", "1"],
    "leaves": ["1"],
    "leaves_beside_ledger": ["1", "0", "100"],
}


@pytest.mark.usefixtures("statistics")
@pytest.mark.parametrize("name", OF_THE_AUDIT)
async def test_an_audit_reads_no_more_than_it_asks_for(session: Connection, name: str) -> None:
    found = await plan_of(session, name, *OF_THE_AUDIT[name])
    kinds = {str(node["Node Type"]) for node in found}

    assert {"Index Scan", "Index Only Scan"} & kinds
    assert not {"Seq Scan", "Bitmap Heap Scan", "Hash Join", "Merge Join", "Sort", "Gather"} & kinds
