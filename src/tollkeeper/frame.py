"""The frame around a service's routes: what every service answers, and what each request passes.

Order from outside: request log, deadline, leaving, body limit, authentication, express, HEAD as
GET, Litestar. `/health` says that the process lives and touches nothing else; `/health/ready` says
whether it should get traffic. Which routes a service has of its own is not known here (`app.py`).
"""

import contextlib
import os
from asyncio import timeout
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import msgspec
import structlog
from litestar import Litestar, Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse
from litestar.types import ASGIApp
from prometheus_client import CollectorRegistry

from tollkeeper import __version__
from tollkeeper.access.service import AccessService
from tollkeeper.config import Settings
from tollkeeper.database.database import Database
from tollkeeper.database.errors import DatabaseError, SchemaMissing
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.clock import Clock
from tollkeeper.kernel.ids import EntropySource
from tollkeeper.migrate.service import pending
from tollkeeper.telemetry.metrics import exposition
from tollkeeper.web.auth import Authentication, AuthenticationTally
from tollkeeper.web.database_api import DatabaseApi
from tollkeeper.web.deadline import Deadline
from tollkeeper.web.errors import NotReady
from tollkeeper.web.express import Answering, Express
from tollkeeper.web.head import HeadAsGet
from tollkeeper.web.leaving import Leaving
from tollkeeper.web.middleware import BodyLimit
from tollkeeper.web.openapi import Answer, RouteFacts, documented
from tollkeeper.web.problem import ProblemTable, exception_handlers
from tollkeeper.web.reference import reference
from tollkeeper.web.request_log import RequestLog, RequestTally

READY_POLL_S = 0.02
READY_TIMEOUT_S = 1.0
"""The readiness check answers within this time, whatever the database does."""

_log = structlog.get_logger(__name__)

TAGS = {
    "database": "How the databases stand, as the process sees them that answers.",
    "service": "For probes and monitoring. These need no key.",
}
"""The groups of the reference page that every service has, after its own."""


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


class ServiceRuntime(Protocol):
    """What the frame around a service's routes needs of everything it is made of."""

    @property
    def settings(self) -> Settings:
        """The settings of the process."""
        ...

    @property
    def clock(self) -> Clock:
        """The clock of the process."""
        ...

    @property
    def entropy(self) -> EntropySource:
        """What the ids of requests are made of."""
        ...

    @property
    def registry(self) -> CollectorRegistry:
        """What `/metrics` shows."""
        ...

    @property
    def access(self) -> AccessService:
        """What knows the API keys."""
        ...

    @property
    def tally(self) -> AuthenticationTally:
        """How authentications ended."""
        ...

    @property
    def requests(self) -> RequestTally:
        """How requests ended."""
        ...

    @property
    def reads(self) -> Pool:
        """The connections that readiness is asked over: those of the service's own database."""
        ...

    @property
    def databases(self) -> Sequence[Database]:
        """The databases, for whoever looks at them."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Busiest:
    """The routes that are answered without the framework, as `web.express` takes them."""

    prefix: str
    parameter: str
    endings: Mapping[str, Answering]
    paths: Mapping[str, Answering] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a service has of its own: routes, their problems, and the words of its page."""

    title: str
    description: str
    tags: Mapping[str, str]
    problems: ProblemTable
    routes: Sequence[HTTPRouteHandler]
    busiest: Busiest


@dataclass(slots=True)
class Readiness:
    """Whether this process should get traffic, and why not."""

    runtime: ServiceRuntime
    database: str
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
            async with timeout(limit_s):
                while not self.draining and await self._missing():
                    await self.runtime.clock.sleep(READY_POLL_S)

    async def _missing(self) -> dict[str, str]:
        found: dict[str, str] = {}
        if self.runtime.access.fault is not None:
            found["access"] = f"API keys cannot be checked: {self.runtime.access.fault}"
        try:
            async with (
                timeout(READY_TIMEOUT_S),
                # A little less, because this error says what is in the way.
                self.runtime.reads.connection(0.9 * READY_TIMEOUT_S) as connection,
            ):
                missing = await pending(connection, self.database)
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


def build_app(runtime: ServiceRuntime, readiness: Readiness, offer: Offer) -> ASGIApp:
    """Return a service as an ASGI application around a running `runtime`."""
    problems, settings, clock = offer.problems, runtime.settings, runtime.clock
    databases = DatabaseApi(runtime.databases, pid=os.getpid(), clock=clock, problems=problems)
    handlers = [
        *offer.routes, *databases.routes(), *_service_routes(runtime, readiness, problems),
    ]  # fmt: skip
    application = Litestar(
        route_handlers=handlers,
        exception_handlers=exception_handlers(problems),
        openapi_config=reference(
            title=offer.title,
            version=__version__,
            description=offer.description,
            tags={**offer.tags, **TAGS},
            handlers=handlers,
            problems=problems,
        ),
        logging_config=None,
        request_max_body_size=None,  # BodyLimit is outside
    )
    busiest = offer.busiest
    express = Express(
        HeadAsGet(application),
        prefix=busiest.prefix,
        parameter=busiest.parameter,
        routes=busiest.endings,
        paths=busiest.paths,
        problems=problems,
    )
    guarded = Authentication(
        express,
        principal_of=runtime.access.principal_of,
        problems=problems,
        clock=clock,
        tally=runtime.tally,
    )
    limited = BodyLimit(guarded, limit_bytes=settings.body_limit_bytes, problems=problems)
    leaving = Leaving(limited, is_leaving=lambda: readiness.draining)
    return RequestLog(
        Deadline(leaving, timeout_s=settings.request_timeout_s, clock=clock),
        clock=clock,
        entropy=runtime.entropy,
        tally=runtime.requests,
        slow_s=settings.log_slow_s,
        lines_per_s=settings.log_requests_per_s,
    )


def _service_routes(
    runtime: ServiceRuntime, readiness: Readiness, problems: ProblemTable
) -> list[HTTPRouteHandler]:
    @get("/health", operation_class=documented(_HEALTH, problems))
    async def health() -> ASGIResponse:
        """Say that the process lives, without touching anything else."""
        return ASGIResponse(body=b'{"status":"ok"}', media_type="application/json")

    @get("/health/ready", operation_class=documented(_READY, problems))
    async def ready() -> Response[ReadinessView]:
        """Check database, schema version and API keys; 503 names what is missing."""
        faults = await readiness.faults()
        if faults:
            raise NotReady(faults=faults)
        return Response(ReadinessView(ready=True, faults=faults))

    @get("/metrics", operation_class=documented(_METRICS, problems))
    async def metrics() -> ASGIResponse:
        """Return the instruments of this process, as Prometheus scrapes them."""
        text, content_type = exposition(runtime.registry)
        return ASGIResponse(body=text, media_type=content_type)

    return [health, ready, metrics]
