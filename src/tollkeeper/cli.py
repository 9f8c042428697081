"""The command line: parses, calls, prints. Knows every face of Tollkeeper and decides nothing.

Invariants: `--help` imports neither server nor driver; data goes to standard output and everything
about it to standard error; every `TollkeeperError` is one sentence and an exit code.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from tollkeeper.access.cli import app as keys_app
from tollkeeper.access.errors import AdminKeyExists
from tollkeeper.credits.alert_cli import alerts_app
from tollkeeper.credits.audit_cli import FAULTS_EXIT, StoppedAfterFaults, checkpoints_app
from tollkeeper.credits.usage_cli import app as credits_app
from tollkeeper.database.cli import app as db_app
from tollkeeper.face import Face, Service, connect_to, connect_to_shadow, dsn_of, run
from tollkeeper.kernel.amounts import MAX_AMOUNT_MINOR
from tollkeeper.kernel.clock import SystemClock
from tollkeeper.kernel.errors import TollkeeperError
from tollkeeper.kernel.ids import system_entropy
from tollkeeper.migrate.backup_cli import app as migrate_app
from tollkeeper.migrate.cli import exit_code_of
from tollkeeper.migrate.errors import MigrationError
from tollkeeper.shadow.report_cli import app as shadow_app
from tollkeeper.shadow.simulate_cli import register as register_simulate

EXIT_FAILED = 1
EXIT_REFUSED = 3
EXIT_INTERRUPTED = 130


def _print_version(wanted: bool) -> None:
    if wanted:
        from tollkeeper import __version__

        typer.echo(f"tollkeeper {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="tollkeeper",
    help="Prepaid credits that cannot go negative, on nothing but PostgreSQL.",
    epilog="Exit codes: 0 done; 1 failed; 2 wrong usage; 3 refused by the ledger or the gate (not "
    "enough credits, not proven, no such account, ...); 4 verify found faults, or explain a "
    "difference; 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
serve_app = typer.Typer(help="Run one service in this process.", no_args_is_help=True)
credits_app.add_typer(alerts_app)
app.add_typer(credits_app)
app.add_typer(checkpoints_app)
register_simulate(shadow_app)
app.add_typer(shadow_app)
app.add_typer(keys_app)
app.add_typer(serve_app, name="serve")
app.add_typer(db_app)
app.add_typer(migrate_app)

Data = Annotated[
    Path | None,
    typer.Option(help="Directory of the local `tollkeeper up` (TOLLKEEPER_DATA, or .tollkeeper)."),
]
Port = Annotated[int | None, typer.Option(min=1, max=65_535, help="TCP port; 5004 by default.")]
ShadowPort = Annotated[
    int | None,
    typer.Option("--shadow-port", min=1, max=65_535, help="Of experiments; 5005 by default."),
]
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


def main() -> None:
    """Run the command line; the only place where errors become text and exit codes."""
    try:
        app()
    except TollkeeperError as error:
        sys.exit(_tell(error, as_json="--json" in sys.argv[1:]))


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
    shadow_port: ShadowPort = None,
    processes: Annotated[
        int, typer.Option(min=1, max=64, help="Processes of the credits service.")
    ] = 1,
) -> None:
    """Start everything here: PostgreSQL, the services, the worker; Ctrl-C stops it all."""
    from tollkeeper.up import run_up

    settings = _face(context).settings(data=data, port=port, shadow_port=shadow_port)
    raise typer.Exit(run_up(settings, processes=processes))


@serve_app.command("credits")
def serve_credits(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on; 127.0.0.1.")] = None,
    port: Port = None,
) -> None:
    """Serve the credits API; needs TOLLKEEPER_CREDITS_DSN and TOLLKEEPER_ACCESS_DSN."""
    settings = _face(context).settings(port=port)
    from tollkeeper.app import serve_credits as serve  # what is wrong is said before it loads

    serve(settings if host is None else replace(settings, host=host))


@serve_app.command("shadow")
def serve_shadow(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on; 127.0.0.1.")] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65_535, help="TCP port; 5005 by default.")
    ] = None,
) -> None:
    """Serve experiments; needs TOLLKEEPER_SHADOW_DSN and TOLLKEEPER_ACCESS_DSN."""
    settings = _face(context).settings(shadow_port=port)
    from tollkeeper.shadow_app import serve_shadow as serve  # what is wrong is said before it loads

    serve(settings if host is None else replace(settings, host=host))


@app.command()
def worker(
    context: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="One round, then end.")] = False,
) -> None:
    """Run the periodic jobs, until Ctrl-C or SIGTERM.

    Partitions, expired keys and holds, signed checkpoints; and reconciliation, which freezes
    accounts that are not what their transactions say.
    """
    settings = _face(context).settings()
    from tollkeeper.worker import run_worker  # what is wrong is said before it loads

    run_worker(settings, once=once)


@db_app.command("url")
def database_url(
    context: typer.Context,
    service: Annotated[Service, typer.Argument(help="Whose database.")],
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Print the address of a database: psql "$(tollkeeper db url credits)"."""
    face = _face(context)
    dsn = dsn_of(face.settings(data=data), service)
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
        bool,
        typer.Option(
            "--exit",
            help="End after the summary; 0 if every unit is there and the experiment is proven.",
        ),
    ] = False,
    requests: Annotated[
        int, typer.Option(min=1, max=10_000_000, help="Requests to bill.")
    ] = 20_000,
    data: Data = None,
    port: Port = None,
    shadow_port: ShadowPort = None,
    as_json: AsJson = False,
) -> None:
    """Start everything, bill made-up LLM traffic, run an experiment to its verdict, stay up."""
    from tollkeeper.demo import Demo, DemoOptions

    face = _face(context)
    job = Demo(
        DemoOptions(run=_fresh_name(), requests=requests, leave=leave),
        face.settings(data=data, port=port, shadow_port=shadow_port),
        connect_to,
        connect_to_shadow,
        screen=face.screen(as_json=as_json),
        clock=SystemClock(),
    )
    raise typer.Exit(0 if run(job.run()) else EXIT_FAILED)


def _fresh_name() -> str:
    return f"{system_entropy():017x}"[-6:]


def _face(context: typer.Context) -> Face:
    face: Face = context.obj
    return face


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

    if isinstance(error, StoppedAfterFaults):
        _tell(error.failure, as_json=as_json)
        return FAULTS_EXIT
    is_refusal = isinstance(error, CallRefused | AdminKeyExists)
    code = EXIT_REFUSED if is_refusal else EXIT_FAILED
    if isinstance(error, MigrationError):
        code = exit_code_of(error)
    if not as_json:
        from rich.console import Console
        from rich.text import Text

        from tollkeeper.client.escapes import visible

        said = Text(visible(f"tollkeeper: {error}"), style="red")
        Console(stderr=True).print(said, soft_wrap=True)
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
