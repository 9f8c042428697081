"""The command line: parses, calls, prints. Knows every face of Tollkeeper and decides nothing.

Invariants: `--help` imports neither server nor driver; data goes to standard output and everything
about it to standard error; every `TollkeeperError` is one sentence and an exit code.
"""

import os
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from tollkeeper.access.cli import app as keys_app
from tollkeeper.access.errors import AdminKeyExists
from tollkeeper.config import Settings, read_settings
from tollkeeper.credits.audit_cli import checkpoints_app
from tollkeeper.credits.freeze_cli import app as credits_app
from tollkeeper.kernel.amounts import MAX_AMOUNT_MINOR
from tollkeeper.kernel.clock import SystemClock
from tollkeeper.kernel.errors import ConfigurationError, TollkeeperError
from tollkeeper.kernel.ids import system_entropy
from tollkeeper.migrate.cli import migrate_command

if TYPE_CHECKING:
    from tollkeeper.client.address import Address
    from tollkeeper.client.credits import CreditsClient
    from tollkeeper.client.keys import KeysClient
    from tollkeeper.client.messages import IssuedKey
    from tollkeeper.client.terminal import Listing, Screen
    from tollkeeper.kernel.backoff import Backoff

EXIT_FAILED = 1
EXIT_REFUSED = 3
EXIT_INTERRUPTED = 130

_Result = TypeVar("_Result")


def _print_version(wanted: bool) -> None:
    if wanted:
        from tollkeeper import __version__

        typer.echo(f"tollkeeper {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="tollkeeper",
    help="Prepaid credits that cannot go negative, on nothing but PostgreSQL.",
    epilog="Exit codes: 0 done; 1 failed; 2 wrong usage; 3 refused by the ledger (not enough "
    "credits, no such account, ...); 4 verify found faults; 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
db_app = typer.Typer(help="The databases themselves.", no_args_is_help=True)
serve_app = typer.Typer(help="Run one service in this process.", no_args_is_help=True)
app.add_typer(credits_app)
app.add_typer(checkpoints_app)
app.add_typer(keys_app)
app.add_typer(serve_app, name="serve")
app.add_typer(db_app, name="db")

Data = Annotated[
    Path | None,
    typer.Option(help="Directory of the local `tollkeeper up` (TOLLKEEPER_DATA, or .tollkeeper)."),
]
Port = Annotated[int | None, typer.Option(min=1, max=65_535, help="TCP port; 5004 by default.")]
Connections = Annotated[int, typer.Option(min=1, max=10_000, help="Connections to the service.")]
Price = Annotated[
    int, typer.Option(metavar="UNITS", min=0, max=MAX_AMOUNT_MINOR, help="Minor units per token.")
]
Topup = Annotated[
    int | None,
    typer.Option(
        metavar="UNITS",
        min=0,
        max=MAX_AMOUNT_MINOR,
        help="Top up each account by this, not by its need.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


class Service(StrEnum):
    """Services that have a database."""

    CREDITS = "credits"
    ACCESS = "access"


class Face:
    """What every command works with; the only thing put into Typer's context.

    It is the `Terminal` of `credits/cli.py` and the `KeyTerminal` of `access/cli.py`. Everything is
    made when it is first needed.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def settings(self, *, data: Path | None = None, port: int | None = None) -> Settings:
        """Return the settings, with what the command line says over the environment."""
        settings = read_settings(self._environment)
        if data is not None:
            settings = replace(settings, data=data)
        if port is not None:
            settings = replace(settings, credits_port=port)
        return settings

    def connector(self, data: Path | None = None) -> "Callable[[int], CreditsClient]":
        """Return what connects to the service over so many connections."""
        address = _address_of(self.settings(data=data))
        return partial(connect_to, address.url, address.api_key)

    def call(self, work: "Callable[[CreditsClient], Awaitable[_Result]]") -> _Result:
        """Connect to the service, do the work, disconnect."""
        from tollkeeper.client.caller import IMPATIENT

        address = _address_of(self.settings())

        async def connected() -> _Result:
            async with connect_to(address.url, address.api_key, 1, backoff=IMPATIENT) as client:
                return await work(client)

        return run(connected())

    def call_keys(self, work: "Callable[[KeysClient], Awaitable[_Result]]") -> _Result:
        """Connect to the service to administer keys, do the work, disconnect."""
        from tollkeeper.client.caller import IMPATIENT
        from tollkeeper.client.keys import KeysClient

        address = _address_of(self.settings())

        async def connected() -> _Result:
            async with KeysClient(
                address.url, address.api_key, connections=1, backoff=IMPATIENT
            ) as client:
                return await work(client)

        return run(connected())

    def first_key(self, name: str, *, expires_in_s: int | None, is_forced: bool) -> "IssuedKey":
        """Make the first key, as the owner of the database of keys."""
        from tollkeeper.client.messages import IssuedKey
        from tollkeeper.telemetry.logging import configure_logging
        from tollkeeper.wiring import create_first_key

        settings = self.settings()
        configure_logging("warning", settings.log_format)
        dsn = _dsn_of(settings, Service.ACCESS)
        issued = run(create_first_key(dsn, name, expires_in_s=expires_in_s, is_forced=is_forced))
        key = issued.key
        return IssuedKey(
            key_id=str(key.key_id), name=key.name, scopes=key.scopes, state="active",
            created_at=key.created_at, expires_at=key.expires_at, token=issued.token,
        )  # fmt: skip

    def say(self, text: str) -> None:
        """Print a sentence to standard error."""
        typer.echo(text, err=True)

    def screen(self, *, as_json: bool = False) -> "Screen":
        """Return where output goes."""
        from tollkeeper.client.terminal import Screen

        return Screen(as_json=as_json)

    def json(self, document: object) -> None:
        """Print one JSON document to standard output."""
        self.screen(as_json=True).json(document)

    def json_lines(self, documents: Sequence[object]) -> None:
        """Print JSON documents to standard output, one a line."""
        self.screen(as_json=True).json_lines(documents)

    def facts(self, title: str, facts: Sequence[tuple[str, str]]) -> None:
        """Print named facts below each other."""
        self.screen().facts(title, facts)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print rows; a column whose name starts with `#` holds numbers."""
        self.screen().table(title, columns, rows)

    def listing(self, title: str, columns: Sequence[str]) -> "Listing":
        """Return a table, of columns as above, that is printed as its rows come."""
        return self.screen().listing(title, columns)


def connect_to(
    url: str, api_key: str, connections: int, *, backoff: "Backoff | None" = None
) -> "CreditsClient":
    """Return a client of a service."""
    from tollkeeper.client.caller import PATIENT
    from tollkeeper.client.credits import CreditsClient

    return CreditsClient(url, api_key, connections=connections, backoff=backoff or PATIENT)


def main() -> None:
    """Run the command line; the only place where errors become text and exit codes."""
    try:
        app()
    except TollkeeperError as error:
        sys.exit(_tell(error, as_json="--json" in sys.argv[1:]))


def run(work: Coroutine[object, object, _Result]) -> _Result:
    """Run a coroutine on a fast event loop; Ctrl-C cancels it and raises KeyboardInterrupt."""
    import asyncio

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


@app.callback()
def root(
    context: typer.Context,
    _version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version."),
    ] = False,
) -> None:
    """Prepaid credits that cannot go negative, on nothing but PostgreSQL."""
    context.obj = Face(os.environ)


@app.command()
def up(
    context: typer.Context,
    data: Data = None,
    port: Port = None,
    processes: Annotated[int, typer.Option(min=1, max=64, help="Service processes.")] = 1,
) -> None:
    """Start everything here: PostgreSQL, the services, the worker; Ctrl-C stops it all."""
    from tollkeeper.up import run_up

    raise typer.Exit(run_up(_face(context).settings(data=data, port=port), processes=processes))


@serve_app.command("credits")
def serve_credits(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on; 127.0.0.1.")] = None,
    port: Port = None,
) -> None:
    """Serve the credits API; needs TOLLKEEPER_CREDITS_DSN and TOLLKEEPER_ACCESS_DSN."""
    from tollkeeper.app import serve_credits as serve

    settings = _face(context).settings(port=port)
    serve(settings if host is None else replace(settings, host=host))


@app.command()
def worker(
    context: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="One round, then end.")] = False,
) -> None:
    """Run the periodic jobs: partitions, expired keys and holds, signed checkpoints."""
    from tollkeeper.worker import run_worker

    run_worker(_face(context).settings(), once=once)


def _migrated_dsn(database: str) -> str:
    return _dsn_of(read_settings(os.environ), Service(database))


app.command("migrate")(migrate_command(_migrated_dsn))


@db_app.command("url")
def database_url(
    context: typer.Context,
    service: Annotated[Service, typer.Argument(help="Whose database.")],
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Print the address of a database: psql "$(tollkeeper db url credits)"."""
    face = _face(context)
    dsn = _dsn_of(face.settings(data=data), service)
    if as_json:
        face.json({"service": service.value, "dsn": dsn})
        return
    typer.echo(dsn)


@app.command()
def replay(
    context: typer.Context,
    trace: Annotated[
        Path, typer.Argument(metavar="TRACE.csv", help="TIMESTAMP,ContextTokens,GeneratedTokens.")
    ],
    accounts: Annotated[
        int, typer.Option(min=1, max=100_000, help="Accounts the lines are dealt out to.")
    ] = 50,
    price_context: Price = 1,
    price_generated: Price = 3,
    speed: Annotated[
        str, typer.Option(metavar="max|1x|60x", help="As fast as can be, or times real time.")
    ] = "max",
    connections: Connections = 16,
    topup: Topup = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave malformed lines out and list them.")
    ] = False,
    hold: Annotated[
        bool,
        typer.Option("--hold", help="Hold the context's price first, then capture the true cost."),
    ] = False,
    repetition: Annotated[
        str, typer.Option("--run", help="Bill the trace anew, on accounts of this name.")
    ] = "",
    tenant: Annotated[str, typer.Option(help="Tenant of the accounts.")] = "replay",
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Bill a usage trace over the HTTP API: one consumption per line, each exactly once.

    Nothing is billed before all lines are checked.

    Each line keeps its idempotency key: a second run within 24 hours charges nothing.
    """
    from tollkeeper.client.trace import Terms
    from tollkeeper.replay import Replay, ReplayOptions

    face = _face(context)
    options = ReplayOptions(
        trace=trace,
        terms=Terms(
            accounts=accounts,
            price_context=price_context,
            price_generated=price_generated,
            run=repetition,
        ),
        tenant_id=tenant,
        speed=_speed_of(speed),
        connections=connections,
        skip_bad=skip_bad,
        hold=hold,
        topup=topup,
    )
    screen = face.screen(as_json=as_json)
    job = Replay(options, face.connector(data), screen=screen, clock=SystemClock())
    try:
        is_clean = run(job.run())
    except (KeyboardInterrupt, TollkeeperError):
        job.explain_stop()
        raise
    raise typer.Exit(0 if is_clean else EXIT_FAILED)


@app.command()
def bench(
    context: typer.Context,
    connections: Connections = 100,
    seconds: Annotated[
        float, typer.Option(min=0.1, max=3_600, help="Length of each of the two parts.")
    ] = 10.0,
    accounts: Annotated[int, typer.Option(min=1, max=1_000_000, help="Accounts.")] = 10_000,
    batch: Annotated[int, typer.Option(min=1, max=10_000, help="Operations per batch.")] = 500,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Load a running service: single consumptions, then batches; prints rates and latencies."""
    from tollkeeper.bench import Bench, BenchOptions

    face = _face(context)
    options = BenchOptions(connections=connections, seconds=seconds, accounts=accounts, batch=batch)
    job = Bench(
        options,
        face.connector(data),
        screen=face.screen(as_json=as_json),
        clock=SystemClock(),
        run=_fresh_name(),
    )
    raise typer.Exit(0 if run(job.run()) else EXIT_FAILED)


@app.command()
def demo(
    context: typer.Context,
    leave: Annotated[
        bool, typer.Option("--exit", help="End after the summary; 0 if every unit is there.")
    ] = False,
    requests: Annotated[
        int, typer.Option(min=1, max=10_000_000, help="Requests to bill.")
    ] = 20_000,
    data: Data = None,
    port: Port = None,
    as_json: AsJson = False,
) -> None:
    """Start everything, bill a made-up day of LLM traffic, show what came of it, stay up."""
    from tollkeeper.demo import Demo, DemoOptions

    face = _face(context)
    job = Demo(
        DemoOptions(run=_fresh_name(), requests=requests, leave=leave),
        face.settings(data=data, port=port),
        connect_to,
        screen=face.screen(as_json=as_json),
        clock=SystemClock(),
    )
    raise typer.Exit(0 if run(job.run()) else EXIT_FAILED)


def _fresh_name() -> str:
    return f"{system_entropy():017x}"[-6:]


def _face(context: typer.Context) -> Face:
    face: Face = context.obj
    return face


def _address_of(settings: Settings) -> "Address":
    from tollkeeper.client.address import Address, find_local

    if settings.url is None and settings.api_key is None:
        return find_local(settings.data)
    if settings.url is None or settings.api_key is None:
        raise ConfigurationError(
            problem="TOLLKEEPER_URL and TOLLKEEPER_API_KEY belong together: set both or neither."
        )
    return Address(url=settings.url, api_key=settings.api_key)


def _dsn_of(settings: Settings, service: Service) -> str:
    configured = {
        Service.CREDITS: settings.credits_dsn,
        Service.ACCESS: settings.access_dsn,
    }[service]
    if configured is not None:
        return configured
    from tollkeeper.database.embedded import dsn_at, holder_of, is_listening

    holder = holder_of(settings.data)
    if holder is None or holder.socket is None or not is_listening(holder.socket):
        raise ConfigurationError(
            problem=f"no database runs in {settings.data}: start it with `tollkeeper up`, or set "
            f"TOLLKEEPER_{service.value.upper()}_DSN."
        )
    return dsn_at(holder.socket, service.value)


def _speed_of(text: str) -> float | None:
    if text == "max":
        return None
    try:
        speed = float(text.removesuffix("x"))
    except ValueError:
        speed = 0.0
    if not text.endswith("x") or not 0 < speed < 1e9:
        raise typer.BadParameter("give max, or a factor such as 60x", param_hint="--speed")
    return speed


def _tell(error: TollkeeperError, *, as_json: bool) -> int:
    """Print an error for whoever reads it and return the exit code."""
    from tollkeeper.client.errors import CallFailed, CallRefused

    is_refusal = isinstance(error, CallRefused | AdminKeyExists)
    code = EXIT_REFUSED if is_refusal else EXIT_FAILED
    if not as_json:
        from rich.console import Console
        from rich.text import Text

        Console(stderr=True).print(Text(f"tollkeeper: {error}", style="red"), soft_wrap=True)
        return code
    import json

    document: dict[str, object] = {
        "type": f"urn:tollkeeper:problem:{_kebab(type(error).__name__)}",
        "title": type(error).__name__,
        "detail": str(error),
    }
    if isinstance(error, CallFailed):
        document = {
            "type": error.type,
            "title": error.title,
            "status": error.status,
            "detail": error.detail,
            **error.facts,
        }
    sys.stderr.write(json.dumps(document) + "\n")
    return code


def _kebab(name: str) -> str:
    return "".join(f"-{each.lower()}" if each.isupper() else each for each in name).lstrip("-")
