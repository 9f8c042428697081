"""`tollkeeper db status|slow`: how databases stand and what is slow, one call of the API each.

Knows neither HTTP nor where the service is: `tollkeeper.cli` puts a `DatabaseTerminal` into the
context. Ages are by the service's clock, from the moment it answered.
"""
# ruff: noqa: D102 - the views' properties are the contract's fields and say what they are

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Protocol, TypeVar

import typer

SLOW_DEFAULT = 20
"""Slow statements that are shown."""

SLOW_LIMIT = 1_000
"""Most of them in an answer of the service."""

UNHEALTHY_EXIT = 1

STATEMENT_WIDTH = 120
"""Characters of a statement in a table; `--json` has all that are kept."""

Fact = tuple[str, str] | tuple[str, str, str]
_Result = TypeVar("_Result")

_TONES = {
    "healthy": "good", "suspect": "warn", "unknown": "warn", "down": "bad",
    "primary": "good", "standby": "good", "read_only": "bad", "offline": "bad",
    "closed": "good", "half_open": "warn", "open": "bad",
}  # fmt: skip
"""Of health, hosts and breakers; a state that is not known here is a warning."""


class HostView(Protocol):
    """What is printed of a host."""

    @property
    def host(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def is_writes(self) -> bool: ...
    @property
    def is_reads(self) -> bool: ...
    @property
    def latency_s(self) -> float | None: ...
    @property
    def lag_s(self) -> float | None: ...
    @property
    def probe(self) -> str: ...
    @property
    def version(self) -> str | None: ...
    @property
    def fault(self) -> str | None: ...


class BreakerView(Protocol):
    """What is printed of a breaker."""

    @property
    def access(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def retry_after_s(self) -> float: ...
    @property
    def opened_total(self) -> int: ...


class PoolView(Protocol):
    """What is printed of a pool."""

    @property
    def name(self) -> str: ...
    @property
    def access(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def idle(self) -> int: ...
    @property
    def in_use(self) -> int: ...
    @property
    def opening(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def acquired_total(self) -> int: ...
    @property
    def timeouts_total(self) -> int: ...
    @property
    def refused_total(self) -> int: ...
    @property
    def lost_total(self) -> int: ...
    @property
    def reuse_ratio(self) -> float | None: ...
    @property
    def efficiency_ratio(self) -> float | None: ...


class DatabaseView(Protocol):
    """What is printed of a database."""

    @property
    def name(self) -> str: ...
    @property
    def health(self) -> str: ...
    @property
    def checked_at(self) -> datetime | None: ...
    @property
    def budget(self) -> int | None: ...
    @property
    def tuning(self) -> str | None: ...
    @property
    def hosts(self) -> Sequence[HostView]: ...
    @property
    def breakers(self) -> Sequence[BreakerView]: ...
    @property
    def pools(self) -> Sequence[PoolView]: ...


class DatabasesView(Protocol):
    """What is printed of the databases of a process."""

    @property
    def pid(self) -> int: ...
    @property
    def at(self) -> datetime: ...
    @property
    def databases(self) -> Sequence[DatabaseView]: ...


class SlowQueryView(Protocol):
    """What is printed of a slow statement."""

    @property
    def database(self) -> str: ...
    @property
    def at(self) -> datetime: ...
    @property
    def statement(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def duration_s(self) -> float: ...
    @property
    def wait_s(self) -> float: ...
    @property
    def run_s(self) -> float: ...
    @property
    def failed(self) -> str | None: ...


class SlowStatementView(Protocol):
    """What is printed of how often a statement was slow."""

    @property
    def database(self) -> str: ...
    @property
    def statement(self) -> str: ...
    @property
    def count(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def sum_s(self) -> float: ...
    @property
    def longest_s(self) -> float: ...
    @property
    def last_at(self) -> datetime: ...


class SlowQueriesView(Protocol):
    """What is printed of the slow statements of a process."""

    @property
    def at(self) -> datetime: ...
    @property
    def threshold_s(self) -> float | None: ...
    @property
    def total(self) -> int: ...
    @property
    def items(self) -> Sequence[SlowQueryView]: ...
    @property
    def statements(self) -> Sequence[SlowStatementView]: ...


class DatabaseCalls(Protocol):
    """The calls these commands make."""

    async def databases(self) -> DatabasesView:
        """Return how each database stands."""
        ...

    async def slow_queries(self, *, limit: int = ...) -> SlowQueriesView:
        """Return the last slow statements."""
        ...


class DatabaseTerminal(Protocol):
    """What `tollkeeper.cli` gives these commands: calls to make, and a way to print."""

    def call_database(self, work: Callable[[DatabaseCalls], Awaitable[_Result]]) -> _Result:
        """Connect to the service, do the work, disconnect."""
        ...

    def json(self, document: object) -> None:
        """Print one JSON document to standard output."""
        ...

    def facts(self, title: str, facts: Sequence[Fact]) -> None:
        """Print named facts below each other; a third text is `good`, `bad` or `warn`."""
        ...

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print rows; a column whose name starts with `#` holds numbers."""
        ...


app = typer.Typer(name="db", help="The databases themselves.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.command()
def status(context: typer.Context, as_json: AsJson = False) -> None:
    """Show how each database stands, as the process sees it that answers.

    Exit code: 0 when every database is healthy; 1 when one is not, or nobody could be asked.
    """
    terminal = _terminal_of(context)
    found = terminal.call_database(lambda calls: calls.databases())
    if as_json:
        terminal.json(found)
    else:
        _print_databases(terminal, found)
    if any(database.health != "healthy" for database in found.databases):
        raise typer.Exit(UNHEALTHY_EXIT)


@app.command()
def slow(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, max=SLOW_LIMIT, help="Statements.")] = SLOW_DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Show the last slow statements, newest first, and those that took most time.

    No value of a statement is kept: literals are shown as `?`.
    """
    terminal = _terminal_of(context)
    found = terminal.call_database(lambda calls: calls.slow_queries(limit=limit))
    if as_json:
        terminal.json(found)
    elif not found.items:
        terminal.facts(_nothing_slow(found.threshold_s), ())
    else:
        _print_slow(terminal, found)


def _terminal_of(context: typer.Context) -> DatabaseTerminal:
    terminal: DatabaseTerminal = context.obj
    return terminal


def _print_databases(terminal: DatabaseTerminal, found: DatabasesView) -> None:
    for database in found.databases:
        facts: list[Fact] = [
            _judged("health", database.health, database.health),
            ("checked (UTC)", _checked(database.checked_at, found.at)),
            *map(_host_fact, database.hosts),
            *map(_breaker_fact, database.breakers),
        ]
        if database.budget is not None:
            facts.append(("budget", _counted(database.budget, "connection")))
        if database.tuning is not None:
            facts.append(("tuning", database.tuning))
        terminal.facts(f"Database {database.name}", facts)
    pools = [(database.name, pool) for database in found.databases for pool in database.pools]
    terminal.table(
        f"Connections of process {found.pid}",
        ("database", "pool", "for", "#most", "#idle", "#in use", "#opening", "#waiting"),
        [(name, *_now(pool)) for name, pool in pools],
    )
    terminal.table(
        "Acquires since it started",
        ("database", "pool", "#in all", "#at once", "#reused", "#timeouts", "#refused", "#lost"),
        [(name, *_so_far(pool)) for name, pool in pools],
    )


def _judged(name: str, text: str, state: str) -> Fact:
    return name, text.replace("_", " "), _TONES.get(state, "warn")


def _host_fact(host: HostView) -> Fact:
    purposes = [
        purpose
        for purpose, is_so in (("writes", host.is_writes), ("reads", host.is_reads))
        if is_so
    ]
    parts = [
        host.state,
        f"for {' and '.join(purposes)}" if purposes else "not used",
        f"PostgreSQL {host.version}" if host.version else "",
        f"answered in {_milliseconds(host.latency_s)} ms" if host.latency_s is not None else "",
        f"lag {_milliseconds(host.lag_s)} ms" if host.lag_s is not None else "",
        f"write probe {host.probe}" if host.probe in {"failed", "missing"} else "",
        host.fault or "",
    ]
    return _judged(f"host {host.host}", ", ".join(filter(None, parts)), host.state)


def _breaker_fact(breaker: BreakerView) -> Fact:
    opened = f", opened {_counted(breaker.opened_total, 'time')}" if breaker.opened_total else ""
    wait = f", tried again in {breaker.retry_after_s:.1f} s" if breaker.retry_after_s > 0 else ""
    return _judged(
        f"breaker for {breaker.access}s", f"{breaker.state}{wait}{opened}", breaker.state
    )


def _now(pool: PoolView) -> tuple[str, ...]:
    counts = (pool.size, pool.idle, pool.in_use, pool.opening, pool.waiting)
    return pool.name, f"{pool.access}s", *(f"{count:,}" for count in counts)


def _so_far(pool: PoolView) -> tuple[str, ...]:
    return (
        pool.name,
        f"{pool.acquired_total:,}",
        _percent(pool.efficiency_ratio),
        _percent(pool.reuse_ratio),
        *(f"{count:,}" for count in (pool.timeouts_total, pool.refused_total, pool.lost_total)),
    )


def _print_slow(terminal: DatabaseTerminal, found: SlowQueriesView) -> None:
    columns = ("time (UTC)", "#ms", "#wait", "failed", "fingerprint", "statement")
    rows = [
        (
            query.at.astimezone(UTC).strftime("%H:%M:%SZ"),
            _milliseconds(query.duration_s),
            _milliseconds(query.wait_s),
            query.failed or "-",
            query.fingerprint,
            f"{query.database}: {_cut(query.statement)}",
        )
        for query in found.items
    ]
    terminal.table(f"Last {len(rows):,} of {found.total:,} slow statements", columns, rows)
    totals = [
        (
            f"{_elapsed(each.last_at, found.at)} ago",
            f"{each.count:,}",
            f"{each.failed:,}",
            _milliseconds(each.sum_s),
            _milliseconds(each.longest_s),
            f"{each.database}: {_cut(each.statement)}",
        )
        for each in found.statements
    ]
    terminal.table(
        "Slow statements by the time they took",
        ("last", "#count", "#failed", "#ms in all", "#longest", "statement"),
        totals,
    )


def _nothing_slow(threshold_s: float | None) -> str:
    if threshold_s is None:
        return "Slow statements are not looked for: TOLLKEEPER_SLOW_QUERY_MS is 0"
    return f"No statement took longer than {threshold_s * 1_000:g} ms"


def _cut(statement: str) -> str:
    """Leave out the middle of what is long: columns stand there, the tables behind them."""
    if len(statement) <= STATEMENT_WIDTH:
        return statement
    half = (STATEMENT_WIDTH - 5) // 2
    return f"{statement[:half]} ... {statement[-half:]}"


def _counted(number: int | None, noun: str) -> str:
    if number is None:
        return "unknown"
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share * 100:.1f} %"


def _milliseconds(duration_s: float) -> str:
    return f"{duration_s * 1_000:,.1f}"


def _checked(moment: datetime | None, now: datetime) -> str:
    return "not yet" if moment is None else f"{_moment(moment)}, {_elapsed(moment, now)} ago"


def _elapsed(moment: datetime, now: datetime) -> str:
    elapsed_s = max(0.0, (now - moment).total_seconds())
    for unit, length_s in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if elapsed_s >= 2 * length_s:
            return f"{elapsed_s // length_s:.0f} {unit}"
    return f"{elapsed_s:.0f} s"


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
