"""A service as a process: how it starts, listens and leaves.

It needs nothing to start: without a database, its migrations or any key it answers 503 and says
what is missing, and serves as soon as it is there; only what no time would mend ends it. It leaves
in this order: readiness, after a grace the listener, then what was accepted; each with a bound.
"""

import asyncio
import contextlib
import gc
import math
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog
import uvicorn
import uvloop

from tollkeeper.config import Settings, cannot_listen
from tollkeeper.connections import check_databases
from tollkeeper.frame import Offer, Readiness, ServiceRuntime, build_app
from tollkeeper.kernel.clock import Clock
from tollkeeper.telemetry.logging import configure_logging
from tollkeeper.web.connection import LimitedConnection

BACKLOG = 2_048
"""Connections the kernel keeps while the process is busy."""

KEEP_ALIVE_S = 75
"""Idle connections are kept this long: longer than the 60 s of common load balancers."""

GRACE_S = 2.0
"""After SIGTERM requests are served so long, while readiness says no. Ctrl-C has none."""

READY_PERIOD_S = 1.0
"""How often a service that is not ready looks by itself whether it is."""

SHARE_WAIT_S = 2.0
"""A process that shares its port waits so long for being ready, before it listens."""

_log = structlog.get_logger(__name__)

_Runtime = TypeVar("_Runtime", bound=ServiceRuntime)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service(Generic[_Runtime]):
    """One service: `name` is its own database's too; `databases` are all it cannot do without.

    `port` names the setting of its port.
    """

    name: str
    databases: tuple[str, ...]
    port: str
    runtime: Callable[[Settings], AbstractAsyncContextManager[_Runtime]]
    offer: Callable[[_Runtime], Offer]

    def address(self, settings: Settings) -> tuple[str, int]:
        """Return where it listens."""
        port: int = getattr(settings, self.port)
        return settings.host, port


def serve(settings: Settings, service: Service[_Runtime]) -> None:
    """Serve until SIGTERM or Ctrl-C; what was accepted is finished first.

    Raises:
        ConfigurationError: the port is taken, a DSN is missing, or its server will never do.
    """
    configure_logging(settings.log_level, settings.log_format)
    with listening_socket(settings, service) as listener:
        uvloop.run(_serve(settings, service, listener))


@contextlib.contextmanager
def listening_socket(settings: Settings, service: Service[_Runtime]) -> Iterator[socket.socket]:
    """Bind the service's address; with `share_port` several processes may.

    Raises:
        ConfigurationError: it is in use, or cannot be bound.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if settings.share_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            listener.bind(service.address(settings))
        except OSError as error:
            host, port = service.address(settings)
            raise cannot_listen(host, port, error, option="--port") from error
        yield listener


async def _serve(settings: Settings, service: Service[_Runtime], listener: socket.socket) -> None:
    await check_databases(settings, *service.databases)
    async with service.runtime(settings) as runtime:
        readiness = Readiness(runtime, service.name)
        config = uvicorn.Config(
            build_app(runtime, readiness, service.offer(runtime)),
            loop="uvloop",
            http=LimitedConnection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s),
        )
        server = _Server(config)
        quiet_collector()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _leave, number, server, readiness, settings)
        if settings.share_port:
            # From when it listens it takes its share of what others would answer.
            await readiness.wait(SHARE_WAIT_S)
        host, port = service.address(settings)
        _log.info("service.listening", host=host, port=port)
        telling = asyncio.create_task(_tell_when_ready(readiness, runtime.clock))
        try:
            await server.serve(sockets=[listener])
        finally:
            telling.cancel()
            await asyncio.wait([telling])
    _log.info("service.left")


async def _tell_when_ready(readiness: Readiness, clock: Clock) -> None:
    """Have the log say what is missing at the start, and when all is there, though nobody asks."""
    while True:
        await clock.sleep(READY_PERIOD_S)  # first: most have what they need within it
        if not await readiness.faults() or readiness.draining:
            return


def _leave(
    number: signal.Signals, server: uvicorn.Server, readiness: Readiness, settings: Settings
) -> None:
    """Leave on a signal: readiness first, after the grace the rest; the second hurries."""
    if readiness.draining:
        _log.warning("service.leaving_at_once", signal=number.name)
        server.should_exit = server.force_exit = True
        return
    readiness.draining = True
    grace_s = GRACE_S if settings.drain_grace_s is None else settings.drain_grace_s
    if number == signal.SIGINT:  # a person at a terminal: no load balancer to wait for
        grace_s = 0.0
    _log.info(
        "service.leaving",
        signal=number.name,
        grace_s=grace_s,
        drain_timeout_s=settings.drain_timeout_s,
    )

    def stop_listening() -> None:
        server.should_exit = True

    asyncio.get_running_loop().call_later(grace_s, stop_listening)


def quiet_collector() -> None:
    """Keep the garbage collector from walking what lives as long as the process.

    Requests leave hardly any cycles: collecting took 8 % of the time of a loaded service.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


class _Server(uvicorn.Server):
    """Uvicorn without its own signal handlers: it would die of the signal after a clean end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
