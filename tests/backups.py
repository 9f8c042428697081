"""What tests of backups share: a folder for them, a ledger to back up, and who hears of it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
from tests.ledger import consume, movement, running_ledger, words_of

from tollkeeper.credits.inspection import LedgerInspector
from tollkeeper.credits.model import Kind
from tollkeeper.kernel.clock import Clock, SystemClock
from tollkeeper.kernel.ids import system_entropy
from tollkeeper.migrate.backup import Occasion, take_backup
from tollkeeper.migrate.backup_model import Backup
from tollkeeper.migrate.catalogue import Catalogue
from tollkeeper.migrate.equipment import Equipment

SERVICE = "credits"
OCCASION = Occasion(service=SERVICE, reason="test", run_id="run")


class HastyClock(SystemClock):
    """The machine's clocks; but waiting takes no longer than giving way to others."""

    def __init__(self) -> None:
        self._ahead_s = 0.0

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self._ahead_s

    async def sleep(self, duration_s: float) -> None:
        self._ahead_s += duration_s
        await asyncio.sleep(0)


@dataclass
class Told:
    """What was logged and shown, in order; `at` is called with the name of each event."""

    events: list[Mapping[str, object]] = field(default_factory=list)
    at: Callable[[str], None] = lambda _: None

    def log(self, event: Mapping[str, object]) -> None:
        self.events.append(event)
        self.at(str(event["event"]))

    def begin(self, what: str, total: int | None) -> None:
        self.events.append({"event": "progress", "what": what, "total": total, "done": 0})
        self.at(f"begin {what}")

    def advance(self, done: int) -> None:
        assert done >= 0
        self.at("advance")

    def end(self) -> None:
        self.at("end")

    @property
    def names(self) -> list[object]:
        return [event["event"] for event in self.events if event["event"] != "progress"]

    def last(self, name: str) -> Mapping[str, object]:
        return [event for event in self.events if event["event"] == name][-1]


def equipment_in(
    folder: Path, told: Told | None = None, *, clock: Clock | None = None
) -> Equipment:
    """Return what backups of ledgers are made with, kept in `folder`."""
    told = told or Told()
    return Equipment(
        catalogue=Catalogue(folder),
        clock=SystemClock() if clock is None else clock,
        entropy=system_entropy,
        inspectors={SERVICE: LedgerInspector(SystemClock())},
        progress=told,
        log=told.log,
    )


async def fill_ledger(dsn: str, accounts: int = 5, spends: int = 4) -> None:
    """Open accounts through the real engine, and let them spend."""
    async with running_ledger(dsn) as ledger:
        names = [f"account-{number}" for number in range(accounts)]
        await ledger.open_with(1_000, *names)
        await spend_in(dsn, names, spends)


async def spend_in(dsn: str, accounts: Sequence[str], times: int, amount: int = 3) -> None:
    """Let accounts spend once more, each so often."""
    async with running_ledger(dsn) as ledger:
        results = await ledger.execute(
            *(consume(name, amount) for name in accounts for _ in range(times))
        )

        assert ["posted"] * (len(accounts) * times) == words_of(results)


async def topup_in(dsn: str, account: str, amount: int) -> None:
    async with running_ledger(dsn) as ledger:
        results = await ledger.execute(movement(Kind.TOPUP, account, amount))

        assert ["posted"] == words_of(results)


async def backed_up(dsn: str, equipment: Equipment) -> Backup:
    return await take_backup(dsn, OCCASION, equipment)


def beside(dsn: str, database: str) -> str:
    """Return the DSN of another database of the same server."""
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{database}"))


def database_in(dsn: str) -> str:
    return urlsplit(dsn).path.removeprefix("/")


@asynccontextmanager
async def connected(dsn: str, **options: object) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn, **options)
    try:
        yield connection
    finally:
        await connection.close()


async def rows_in(dsn: str) -> list[tuple[object, ...]]:
    """Return all accounts and transactions of a ledger."""
    async with connected(dsn) as connection:
        accounts = await connection.fetch("SELECT * FROM accounts ORDER BY shard, account_id")
        moved = await connection.fetch(
            "SELECT * FROM credit_transactions ORDER BY shard, account_id, sequence"
        )
    return [tuple(row) for row in (*accounts, *moved)]


async def names_beside(dsn: str) -> set[str]:
    """Return the names of all databases that a server has for its users."""
    async with connected(beside(dsn, "postgres")) as connection:
        rows = await connection.fetch("SELECT datname FROM pg_database")
    return {row["datname"] for row in rows}


async def drop_asides(dsn: str) -> None:
    """Drop the databases that rollbacks of this one have put aside."""
    name = database_in(dsn)
    async with connected(beside(dsn, "postgres")) as connection:
        for each in await names_beside(dsn):
            if each.startswith((f"{name}_before_", f"{name}_undone_")):
                await connection.execute(f'DROP DATABASE "{each}" WITH (FORCE)')
