"""The HTTP face: which routes a service has, what stands around them, and how it starts and leaves.

Order from outside: request log, deadline, leaving, body limit, authentication, express, HEAD as
GET, Litestar. `/health` says that the process lives and touches nothing else; `/health/ready` says
whether it should get traffic.

It needs nothing to start: without a database, its migrations or any key it answers 503 and says
what is missing, and serves as soon as it is there; only what no time would mend ends it. It leaves
in this order: readiness, after a grace the listener, then what was accepted; each with a bound.
"""

import asyncio
import contextlib
import gc
import math
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec
import structlog
import uvicorn
import uvloop
from litestar import Litestar, Response, get
from litestar.response.base import ASGIResponse
from litestar.types import ASGIApp

from tollkeeper import __version__
from tollkeeper.access.api import PROBLEMS as ACCESS_PROBLEMS
from tollkeeper.access.api import KeysApi
from tollkeeper.config import Settings
from tollkeeper.credits.alert_api import AlertsApi
from tollkeeper.credits.api import PROBLEMS as CREDITS_PROBLEMS
from tollkeeper.credits.api import CreditsApi
from tollkeeper.credits.audit_api import AuditApi
from tollkeeper.credits.freeze_api import FreezesApi
from tollkeeper.credits.hold_api import HoldsApi
from tollkeeper.credits.usage_api import UsageApi
from tollkeeper.database.errors import DatabaseError, SchemaMissing
from tollkeeper.kernel.clock import Clock
from tollkeeper.kernel.errors import ConfigurationError
from tollkeeper.migrate.service import pending
from tollkeeper.telemetry.logging import configure_logging
from tollkeeper.telemetry.metrics import exposition
from tollkeeper.web.auth import Authentication
from tollkeeper.web.connection import LimitedConnection
from tollkeeper.web.database_api import DatabaseApi
from tollkeeper.web.deadline import Deadline
from tollkeeper.web.errors import NotReady
from tollkeeper.web.express import Express
from tollkeeper.web.head import HeadAsGet
from tollkeeper.web.leaving import Leaving
from tollkeeper.web.middleware import BodyLimit
from tollkeeper.web.openapi import Answer, RouteFacts, documented
from tollkeeper.web.problem import SHARED_PROBLEMS, ProblemTable, exception_handlers
from tollkeeper.web.reference import reference
from tollkeeper.web.request_log import RequestLog
from tollkeeper.wiring import CreditsRuntime, check_databases, credits_runtime

BACKLOG = 2_048
"""Connections the kernel keeps while the process is busy."""

KEEP_ALIVE_S = 75
"""Idle connections are kept this long: longer than the 60 s of common load balancers."""

GRACE_S = 2.0
"""After SIGTERM requests are served so long, while readiness says no. Ctrl-C has none."""

READY_PERIOD_S = 1.0
"""How often a service that is not ready looks by itself whether it is."""

READY_POLL_S = 0.02
SHARE_WAIT_S = 2.0
"""A process that shares its port waits so long for being ready, before it listens."""

READY_TIMEOUT_S = 1.0
"""The readiness check answers within this time, whatever the database does."""

_log = structlog.get_logger(__name__)

PROBLEMS: ProblemTable = {**SHARED_PROBLEMS, **ACCESS_PROBLEMS, **CREDITS_PROBLEMS}
"""Every problem this service can answer."""

TAGS = {
    "accounts": "What holds credits. An account belongs to one tenant.",
    "transactions": "What moves credits. Each is one immutable row of the ledger.",
    "holds": "Credits promised before the work, and taken when its price is known.",
    "alerts": "Being told that an account's credits run low, before they are spent.",
    "usage": "What was consumed and purchased, when and for what.",
    "audit": "Whether the ledger is what it must be.",
    "keys": "Who may call. A key carries scopes, and may be bound to a tenant.",
    "database": "How the databases stand, as the process sees them that answers.",
    "service": "For probes and monitoring. These need no key.",
}
"""The groups of the reference page, in its order."""


class HealthView(msgspec.Struct):
    """The process lives."""

    status: Literal["ok"]


class ReadinessView(msgspec.Struct):
    """This process should get traffic; otherwise the problem's `faults` name what is missing."""

    ready: bool
    faults: dict[str, str]


_HEALTH = RouteFacts(
    summary="Is the process alive?",
    tag="service",
    answers={200: Answer(description="it lives", view=HealthView)},
)
_READY = RouteFacts(
    summary="Should it get traffic?",
    tag="service",
    answers={200: Answer(description="yes", view=ReadinessView)},
    problems=(NotReady,),
)
_METRICS = RouteFacts(
    summary="Read the metrics",
    tag="service",
    answers={200: Answer(description="Prometheus text")},
)


@dataclass(slots=True)
class Readiness:
    """Whether this process should get traffic, and why not."""

    runtime: CreditsRuntime
    draining: bool = False
    _last: dict[str, str] | None = None

    async def faults(self) -> dict[str, str]:
        """Return what is not right, by name; empty when ready."""
        if self.draining:
            return {"service": "draining"}
        found = await self._missing()
        if found != self._last:
            if found:
                _log.warning("service.not_ready", **found)
            else:
                _log.info("service.ready")
            self._last = found
        return found

    async def wait(self, limit_s: float) -> None:
        """Return when nothing is missing, or after `limit_s`; the log is not told of it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while not self.draining and await self._missing():
                    await self.runtime.clock.sleep(READY_POLL_S)

    async def _missing(self) -> dict[str, str]:
        found: dict[str, str] = {}
        if self.runtime.access.fault is not None:
            found["access"] = f"API keys cannot be checked: {self.runtime.access.fault}"
        try:
            async with (
                asyncio.timeout(READY_TIMEOUT_S),
                # A little less, because this error says what is in the way.
                self.runtime.reads.connection(0.9 * READY_TIMEOUT_S) as connection,
            ):
                missing = await pending(connection, "credits")
        except SchemaMissing as error:
            found["schema"] = str(error)
        except (DatabaseError, OSError, TimeoutError) as error:
            found["database"] = str(error) or "no answer in time"
        except Exception as error:  # noqa: BLE001  # whatever keeps it from answering is a fault
            found["database"] = f"it refuses what a service needs: {error}"
        else:
            if missing:
                found["schema"] = (
                    f"{len(missing)} migrations are pending; run `tollkeeper migrate up`"
                )
        return found


def build_credits_app(runtime: CreditsRuntime, readiness: Readiness) -> ASGIApp:
    """Return the credits service as an ASGI application around a running `runtime`."""
    api = CreditsApi(runtime.credits, entropy=runtime.entropy, problems=PROBLEMS)
    keys = KeysApi(runtime.issuer, runtime.access, clock=runtime.clock, problems=PROBLEMS)

    @get("/health", operation_class=documented(_HEALTH, PROBLEMS))
    async def health() -> ASGIResponse:
        """Say that the process lives, without touching anything else."""
        return ASGIResponse(body=b'{"status":"ok"}', media_type="application/json")

    @get("/health/ready", operation_class=documented(_READY, PROBLEMS))
    async def ready() -> Response[ReadinessView]:
        """Check database, schema version and API keys; 503 names what is missing."""
        faults = await readiness.faults()
        if faults:
            raise NotReady(faults=faults)
        return Response(ReadinessView(ready=True, faults=faults))

    @get("/metrics", operation_class=documented(_METRICS, PROBLEMS))
    async def metrics() -> ASGIResponse:
        """Return the instruments of this process, as Prometheus scrapes them."""
        text, content_type = exposition(runtime.registry)
        return ASGIResponse(body=text, media_type=content_type)

    holds = HoldsApi(
        runtime.credits, clock=runtime.clock, entropy=runtime.entropy, problems=PROBLEMS
    )
    audit = AuditApi(runtime.auditor, problems=PROBLEMS)
    usage = UsageApi(runtime.usage, clock=runtime.clock, problems=PROBLEMS)
    freezes = FreezesApi(runtime.credits, entropy=runtime.entropy, problems=PROBLEMS)
    alerts = AlertsApi(runtime.alerts, problems=PROBLEMS)
    databases = DatabaseApi(
        runtime.databases, pid=os.getpid(), clock=runtime.clock, problems=PROBLEMS
    )
    routes = [
        *api.routes(), *holds.routes(), *alerts.routes(), *usage.routes(), *audit.routes(),
        *freezes.routes(),
        *keys.routes(), *databases.routes(),
    ]  # fmt: skip
    handlers = [*routes, health, ready, metrics]
    application = Litestar(
        route_handlers=handlers,
        exception_handlers=exception_handlers(PROBLEMS),
        openapi_config=reference(
            title="Tollkeeper credits",
            version=__version__,
            description="Prepaid credits that cannot go negative. Amounts are whole numbers of "
            "minor units; bodies are JSON; lists page by cursor.",
            tags=TAGS,
            handlers=handlers,
            problems=PROBLEMS,
        ),
        logging_config=None,
        request_max_body_size=None,  # BodyLimit is outside
    )
    routed = HeadAsGet(application)
    express = Express(
        routed,
        prefix="/v1/accounts/",
        parameter="account_id",
        routes=api.express(),
        problems=PROBLEMS,
    )
    guarded = Authentication(
        express,
        principal_of=runtime.access.principal_of,
        problems=PROBLEMS,
        clock=runtime.clock,
        tally=runtime.tally,
    )
    settings = runtime.settings
    limited = BodyLimit(guarded, limit_bytes=settings.body_limit_bytes, problems=PROBLEMS)
    leaving = Leaving(limited, is_leaving=lambda: readiness.draining)
    return RequestLog(
        Deadline(leaving, timeout_s=settings.request_timeout_s, clock=runtime.clock),
        clock=runtime.clock,
        entropy=runtime.entropy,
        tally=runtime.requests,
        slow_s=settings.log_slow_s,
        lines_per_s=settings.log_requests_per_s,
    )


def serve_credits(settings: Settings) -> None:
    """Serve the ledger until SIGTERM or Ctrl-C; what was accepted is finished first.

    Raises:
        ConfigurationError: the port is taken, a DSN is missing, or its server will never do.
    """
    configure_logging(settings.log_level, settings.log_format)
    with listening_socket(settings) as listener:
        uvloop.run(_serve(settings, listener))


@contextlib.contextmanager
def listening_socket(settings: Settings) -> Iterator[socket.socket]:
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
            listener.bind((settings.host, settings.credits_port))
        except OSError as error:
            raise ConfigurationError(
                problem=f"Cannot listen on {settings.host}:{settings.credits_port}: "
                f"{(error.strerror or str(error)).lower()}. Choose another with --port."
            ) from error
        yield listener


async def _serve(settings: Settings, listener: socket.socket) -> None:
    await check_databases(settings, "credits", "access")
    async with credits_runtime(settings) as runtime:
        readiness = Readiness(runtime)
        config = uvicorn.Config(
            build_credits_app(runtime, readiness),
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
        _log.info("service.listening", host=settings.host, port=settings.credits_port)
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
