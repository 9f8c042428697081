"""`tollkeeper up`: everything on this machine, from nothing, until Ctrl-C.

Holds the data directory, starts the embedded PostgreSQL unless DSNs are configured, migrates,
makes a development key, runs services and worker as child processes and starts again what dies.

It serves no request itself. Invariants: nothing starts before the ports and the directory are known
to be ours; services leave before the database; after a SIGKILL of ours nothing is left running.
"""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path

from tollkeeper.backups import backup_equipment, folder_of
from tollkeeper.config import Settings, cannot_listen, check_session, mask_dsn, variable_of
from tollkeeper.connections import BESIDE_EXPERIMENTS, SPARE_CONNECTIONS, check_databases
from tollkeeper.credits.keyfile import ensure_key
from tollkeeper.database.embedded import EmbeddedServer, claim_directory, explained
from tollkeeper.database.errors import EmbeddedError
from tollkeeper.database.holder import DirectoryLock
from tollkeeper.database.server_settings import MAX_CONNECTIONS
from tollkeeper.kernel.clock import SystemClock
from tollkeeper.kernel.errors import ConfigurationError
from tollkeeper.kernel.ids import system_token
from tollkeeper.migrate.guarding import backing_up
from tollkeeper.migrate.model import DATABASES
from tollkeeper.migrate.narration import narrating
from tollkeeper.migrate.progress import Silent
from tollkeeper.migrate.runlog import RunLog, both
from tollkeeper.migrate.service import Run, new_run_id, shipped_migrations
from tollkeeper.migrate.service import up as apply
from tollkeeper.supervisor import RESTART_BACKOFF, Program, Supervised
from tollkeeper.telemetry.logging import configure_logging
from tollkeeper.wiring import BESIDE_LEDGER, ensure_development_key

SERVED = ("credits", "access")
"""Databases that nothing works without. Experiments are served where they have theirs."""

READY_TIMEOUT_S = 60.0
READY_POLL_S = 0.05
WATCH_PERIOD_S = 0.25
"""How soon a dead database server is noticed."""

STOP_GRACE_S = 10.0
"""What a service gets beyond its own grace and drain timeout."""

EXIT_AT_ONCE = 130

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """What runs, and how to reach it; `shadow_url` is None where experiments have no database."""

    url: str
    shadow_url: str | None
    api_key: str
    data: Path
    dsns: Mapping[str, str]

    def dsn(self, name: str) -> str:
        """Return the address of one database."""
        return self.dsns[name]

    def psql(self) -> str:
        """Return a command to paste that opens the ledger; a password is not shown."""
        dsn = self.dsn("credits")
        if mask_dsn(dsn) == dsn:
            return f"psql '{dsn}'"
        return f'psql "${variable_of("credits_dsn")}"'


def run_up(settings: Settings, *, processes: int = 1) -> int:
    """Run everything until Ctrl-C or SIGTERM and return the exit code.

    Raises:
        TollkeeperError: it cannot start; the sentence says why.
    """
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_until_interrupted(settings, processes=processes))


def _say_nothing(_step: str) -> None:
    pass


@asynccontextmanager
async def local_stack(
    settings: Settings, *, processes: int = 1, say: Say = _say_nothing
) -> AsyncIterator[Stack]:
    """Start everything, lend it while it is ready, stop everything in order.

    Logs of this process go to standard error from `warning` on: its terminal is for people.

    Raises:
        TollkeeperError: it cannot start; the sentence says why.
    """
    _check(settings, processes=processes)
    configure_logging("warning", settings.log_format)
    clock = SystemClock()
    data = settings.data.expanduser().resolve()
    async with AsyncExitStack() as started:
        lock = claim_directory(data)
        started.callback(lock.release)
        started.enter_context(_reserved_port(settings.host, settings.credits_port, "--port"))
        if _serves_experiments(settings):
            port = settings.shadow_port
            started.enter_context(_reserved_port(settings.host, port, "--shadow-port"))
        dsns = await started.enter_async_context(_databases(settings, data, lock, say))
        with explained(data):
            await _migrate(settings, data, dsns, say)
        api_key = await ensure_development_key(dsns["access"], data / "dev.key")
        with explained(data):
            settings = _with_checkpoints(settings, data)
        settings = replace(
            settings, evidence=(settings.evidence or data / "evidence").expanduser().resolve()
        )
        url, shadow_url = _url_of(settings.host, settings.credits_port), None
        if "shadow" in dsns:
            shadow_url = _url_of(settings.host, settings.shadow_port)
        say("starting the services")
        with explained(data):
            programs = _programs(settings, data, dsns, processes=processes)
            running = [Supervised(program, clock=clock, say=say) for program in programs]
        leaving_s = (settings.drain_grace_s or 0.0) + settings.drain_timeout_s
        urls = [each for each in (url, shadow_url) if each is not None]
        await started.enter_async_context(_running(running, urls, leaving_s))
        with explained(data):
            lock.announce(url=url)
            started.callback(_announce(data / "up.json", url=url, shadow_url=shadow_url))
        try:
            yield Stack(url=url, shadow_url=shadow_url, api_key=api_key, data=data, dsns=dsns)
        finally:
            say("stopping")


async def _migrate(settings: Settings, data: Path, dsns: Mapping[str, str], say: Say) -> None:
    """Bring every database to this version; one that has been used is backed up before."""
    clock = SystemClock()
    run_id, folder = new_run_id(clock), folder_of(replace(settings, data=data))
    with RunLog(folder, run_id, clock=clock, say=say) as log:
        tell = both(log.tell, narrating(say))
        equipment = backup_equipment(settings, folder, log=tell, progress=Silent())
        for name, dsn in dsns.items():
            await apply(
                Run(
                    dsn=dsn, database=name, available=shipped_migrations(name), clock=clock,
                    run_id=run_id, tell=tell,
                    before=backing_up(dsn, equipment, run_id=str(run_id)),
                )
            )  # fmt: skip


def _with_checkpoints(settings: Settings, data: Path) -> Settings:
    """Return the settings with a key to sign checkpoints, and a file they go to.

    What is configured stays as it is; a key of our own is made once and kept.
    """
    key, file = settings.checkpoint_key, settings.checkpoint_file
    if key is None:
        key = data / "checkpoint.key"
        ensure_key(key, tokens=system_token)
    if file is None and settings.checkpoint_url is None:
        file = data / "checkpoints" / "credits.notes"
        file.parent.mkdir(exist_ok=True)
    return replace(
        settings,
        checkpoint_key=key.expanduser().resolve(),
        checkpoint_file=None if file is None else file.expanduser().resolve(),
    )


def _check(settings: Settings, *, processes: int) -> None:
    check_session(settings, "`tollkeeper up`")
    configured = [name for name in SERVED if getattr(settings, f"{name}_dsn") is not None]
    if len(configured) == 1:
        missing = next(name for name in SERVED if name not in configured)
        raise ConfigurationError(
            problem=f"{variable_of(f'{configured[0]}_dsn')} is set but "
            f"{variable_of(f'{missing}_dsn')} is not: set both, or neither for the embedded "
            "PostgreSQL."
        )
    each = settings.lanes + settings.pool_size + BESIDE_LEDGER
    experiments = settings.lanes + settings.pool_size + BESIDE_EXPERIMENTS
    needed = processes * each + experiments + SPARE_CONNECTIONS
    if not configured and needed > MAX_CONNECTIONS:
        raise ConfigurationError(
            problem=f"{processes} processes need {needed} database connections and the embedded "
            f"PostgreSQL has {MAX_CONNECTIONS}: use fewer --processes or a smaller "
            f"{variable_of('pool_size')}."
        )


def _serves_experiments(settings: Settings) -> bool:
    """Whether there is a database of experiments: configured, or on the embedded server."""
    is_embedded = any(getattr(settings, f"{name}_dsn") is None for name in SERVED)
    return is_embedded or settings.shadow_dsn is not None


@contextmanager
def _reserved_port(host: str, port: int, option: str) -> Iterator[None]:
    """Keep the port for our services, which share it, from before they start until they ended."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    address = (host, port)
    with (
        socket.socket(family, socket.SOCK_STREAM) as alone,
        socket.socket(family, socket.SOCK_STREAM) as placeholder,
    ):
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            # Alone first: sharing would succeed beside another program of this user that shares.
            alone.bind(address)
            alone.close()
            placeholder.bind(address)
        except OSError as error:
            raise cannot_listen(host, port, error, option=option) from error
        yield


@asynccontextmanager
async def _databases(
    settings: Settings, data: Path, lock: DirectoryLock, say: Say
) -> AsyncIterator[Mapping[str, str]]:
    """Lend the DSNs of all databases: the configured ones, or those of an embedded server."""
    named = {name: getattr(settings, f"{name}_dsn") for name in DATABASES}
    configured = {name: dsn for name, dsn in named.items() if dsn is not None}
    if all(name in configured for name in SERVED):
        await check_databases(settings, *configured)
        yield configured
        return
    async with _embedded(data, lock, say) as server:
        embedded = [name for name in DATABASES if name not in configured]
        for name in embedded:
            await asyncio.to_thread(server.create_database, name)
        watch = asyncio.create_task(_watch(server, say), name="watch postgresql")
        try:
            yield {**{name: server.dsn(name) for name in embedded}, **configured}
        finally:
            watch.cancel()
            await asyncio.wait([watch])


@asynccontextmanager
async def _embedded(data: Path, lock: DirectoryLock, say: Say) -> AsyncIterator[EmbeddedServer]:
    starting = asyncio.create_task(
        asyncio.to_thread(EmbeddedServer.start, data, say=say, lock=lock)
    )
    try:
        yield await asyncio.shield(starting)
    finally:
        # Also when we are interrupted while it starts: what came up must be stopped.
        await asyncio.wait([starting])
        if starting.exception() is None:
            await asyncio.to_thread(starting.result().stop)


async def _watch(server: EmbeddedServer, say: Say) -> None:
    """Start the server again whenever it has died."""
    failures = 0
    while True:
        await asyncio.sleep(WATCH_PERIOD_S)
        if server.is_running():
            failures = 0
            continue
        say("PostgreSQL ended; starting it again")
        try:
            await asyncio.to_thread(server.restart)
        except EmbeddedError as error:
            say(str(error))
            await asyncio.sleep(RESTART_BACKOFF.wait_ms(min(failures, 16), 0.0) / 1_000)
            failures += 1


def _programs(
    settings: Settings, data: Path, dsns: Mapping[str, str], *, processes: int
) -> tuple[Program, ...]:
    logs = data / "logs"
    logs.mkdir(mode=0o700, exist_ok=True)
    environment = _environment_of(
        replace(
            settings,
            **{f"{name}_dsn": dsn for name, dsn in dsns.items()},  # type: ignore[arg-type]
            data=data,
            backups=folder_of(replace(settings, data=data)),
            share_port=True,
            replicas=max(settings.replicas, processes + 1),  # with the service of experiments
            drain_grace_s=settings.drain_grace_s or 0.0,  # nobody polls, unless it is set
            url=None,
            shadow_url=None,
            api_key=None,
        )
    )

    def program(name: str, *arguments: str) -> Program:
        command = (sys.executable, "-m", "tollkeeper", *arguments)
        return Program(
            name=name, command=command, environment=environment, log=logs / f"{name}.log"
        )

    port = str(settings.credits_port)
    numbers = range(1, processes + 1)
    services = [program(f"credits-{n}", "serve", "credits", "--port", port) for n in numbers]
    if "shadow" in dsns:
        port = str(settings.shadow_port)
        services.append(program("shadow", "serve", "shadow", "--port", port))
    return (*services, program("worker", "worker"))


def _environment_of(settings: Settings) -> dict[str, str]:
    """Return our environment with these settings, and no others, in it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TOLLKEEPER_")}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if value is not None:
            text = str(int(value)) if isinstance(value, bool) else str(value)
            kept[variable_of(field.name)] = text
    return kept


@asynccontextmanager
async def _running(
    programs: Sequence[Supervised], urls: Sequence[str], leaving_s: float
) -> AsyncIterator[None]:
    """Run the programs, all at once; lend the moment when every service says that it is ready."""
    try:
        for each in programs:
            each.start()
        for url in urls:
            await _wait_until_ready(url, programs)
        yield
    finally:
        timeout_s = leaving_s + STOP_GRACE_S
        await asyncio.gather(*(each.stop(timeout_s=timeout_s) for each in programs))


async def _wait_until_ready(url: str, running: Sequence[Supervised]) -> None:
    for _ in range(int(READY_TIMEOUT_S / READY_POLL_S)):
        if await _is_ready(url):
            return
        for each in running:
            if each.failures:
                raise ConfigurationError(
                    problem=f"{each.name} did not start: "
                    f"{each.last_words.removeprefix('tollkeeper: ') or 'it gave no reason'}"
                )
        await asyncio.sleep(READY_POLL_S)
    raise ConfigurationError(problem=f"{url} was not ready within {READY_TIMEOUT_S:g} s.")


async def _is_ready(url: str) -> bool:
    """Ask `/health/ready` once; a few lines here spare the start an HTTP library's import."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    request = f"GET /health/ready HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    try:
        async with asyncio.timeout(2.0):
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            try:
                writer.write(request.encode())
                return (await reader.readline()).split(b" ")[1:2] == [b"200"]
            finally:
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError):
        return False


def _url_of(host: str, port: int) -> str:
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # compared, not bound
    host = everywhere.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _announce(path: Path, **urls: str | None) -> Callable[[], None]:
    """Let operator commands find us; return what takes it back.

    The file is replaced whole, so it is never read half-written.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    known = {name: url for name, url in urls.items() if url is not None}
    fresh.write_text(json.dumps({**known, "pid": os.getpid()}) + "\n", encoding="utf-8")
    fresh.replace(path)
    return lambda: path.unlink(missing_ok=True)


async def _until_interrupted(settings: Settings, *, processes: int) -> int:
    """Show the stack and wait; the first signal stops everything in order, the second at once."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    task = asyncio.current_task()
    assert task is not None
    interrupted = False

    def leave() -> None:
        nonlocal interrupted
        if interrupted:
            # The kernel ends what we started, together with us.
            os._exit(EXIT_AT_ONCE)
        interrupted = True
        task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # `nohup` has us ignore SIGHUP: then we outlive the terminal.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            loop.add_signal_handler(number, leave)

    def say(step: str) -> None:
        with suppress(OSError):  # the terminal may be gone
            console.print(f"  {step}", style="dim", markup=False, soft_wrap=True)

    try:
        async with local_stack(settings, processes=processes, say=say) as stack:
            _show(stack)
            await asyncio.Event().wait()
    except asyncio.CancelledError:
        if not interrupted:
            raise
        say("stopped")
    return 0


def _show(stack: Stack) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    console.print()
    console.rule("[bold]Tollkeeper is up", align="left")
    shadow = stack.shadow_url or f"not served: {variable_of('shadow_dsn')} is not set"
    for name, value in (
        ("API", f"{stack.url}/v1"),
        ("Docs", f"{stack.url}/schema"),
        ("Shadow", shadow),
        ("Key", f"{stack.api_key}   (also in {stack.data / 'dev.key'})"),
        ("Data", str(stack.data)),
        ("psql", stack.psql()),
        ("Logs", str(stack.data / "logs")),
    ):
        # Unwrapped and without a frame, so that it can be copied.
        console.print(Text.assemble((f"  {name:<7}", "cyan"), value), soft_wrap=True)
    console.rule("[dim]Ctrl-C stops everything", align="left")
