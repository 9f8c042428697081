"""How the databases of this process stand, over HTTP.

Both routes need the scope `admin` of a key that is not bound to a tenant: what a statement took
says something of everybody's work. They answer from memory, so they answer while a database does
not.
"""

from collections.abc import Sequence

import msgspec
from litestar import Request, get
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.spec import Parameter, Schema
from litestar.openapi.spec.enums import OpenAPIType

from tollkeeper.database.source import Source
from tollkeeper.kernel.clock import Clock
from tollkeeper.kernel.principal import Scope
from tollkeeper.web.answer import JsonAnswer
from tollkeeper.web.auth import authorize
from tollkeeper.web.database_messages import (
    DatabasesView,
    SlowQueriesView,
    databases_view,
    slow_queries_view,
)
from tollkeeper.web.errors import FieldFault, OperatorNeeded, RequestInvalid
from tollkeeper.web.openapi import Answer, RouteFacts, documented
from tollkeeper.web.problem import ProblemTable
from tollkeeper.web.query import query_of, refuse_query

SLOW_LIMIT = 1_000
"""Most slow statements in an answer; a database keeps its last 100."""

SLOW_DEFAULT = 100

_ENCODER = msgspec.json.Encoder()
_NO_STORE = ((b"cache-control", b"no-store"),)
"""It is true for a moment, and nobody else's to keep."""

_AnyRequest = Request[None, None, State]


class DatabaseApi:
    """The routes of a process's databases."""

    def __init__(
        self, sources: Sequence[Source], *, pid: int, clock: Clock, problems: ProblemTable
    ) -> None:
        self._sources = tuple(sources)
        self._pid = pid
        self._clock = clock
        self._problems = problems

    def routes(self) -> list[HTTPRouteHandler]:
        """Return the route handlers."""
        show = get("/v1/database", operation_class=documented(_STATUS, self._problems))
        slow = get("/v1/database/slow-queries", operation_class=documented(_SLOW, self._problems))
        return [show(self.database_status), slow(self.slow_queries)]

    async def database_status(self, request: _AnyRequest) -> JsonAnswer:
        """Read how each database stands: hosts, breakers and pools, as this process sees them.

        Where several processes share a port, one of them answers, for itself; `pid` says which.
        """
        _authorize_operator(request)
        refuse_query(request.scope)
        statuses = [source.status() for source in self._sources]
        return _answer(databases_view(statuses, pid=self._pid, now=self._clock.now()))

    async def slow_queries(self, request: _AnyRequest) -> JsonAnswer:
        """Read the last statements that took long, newest first, without a value of them.

        Each has its wait for a connection beside its run: a long wait is the pool's fault, a long
        run the server's or the network's. A process keeps the last 100 of each database.
        """
        _authorize_operator(request)
        limit = _limit_of(query_of(request.scope, _LIMIT.name))
        slow = [source.slow for source in self._sources]
        view = slow_queries_view(slow, limit=limit, pid=self._pid, now=self._clock.now())
        return _answer(view)


def _authorize_operator(request: _AnyRequest) -> None:
    principal = authorize(request.scope, Scope.ADMIN)
    if principal.tenant_id is not None:
        raise OperatorNeeded(what="how the databases stand")


def _limit_of(query: dict[str, str]) -> int:
    text = query.get("limit", str(SLOW_DEFAULT))
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= SLOW_LIMIT):
        fault = FieldFault(field="limit", detail=f"must be a whole number from 1 to {SLOW_LIMIT}")
        raise RequestInvalid(errors=(fault,))
    return int(text)


def _answer(view: DatabasesView | SlowQueriesView) -> JsonAnswer:
    return JsonAnswer(_ENCODER.encode(view), 200, _NO_STORE)


_LIMIT = Parameter(
    name="limit",
    param_in="query",
    required=False,
    description="statements in the answer",
    schema=Schema(type=OpenAPIType.INTEGER, minimum=1, maximum=SLOW_LIMIT, default=SLOW_DEFAULT),
    example=10,
)
_NO_STORE_HEADER: dict[str, dict[str, object]] = {
    "Cache-Control": {
        "description": "true for a moment only",
        "schema": {"type": "string", "const": "no-store"},
    }
}
_STATUS = RouteFacts(
    summary="Read how the databases stand",
    tag="database",
    scope=Scope.ADMIN,
    answers={
        200: Answer(
            description="each database of the process that answered",
            view=DatabasesView,
            headers=_NO_STORE_HEADER,
        )
    },
    problems=(RequestInvalid, OperatorNeeded),
)
_SLOW = RouteFacts(
    summary="Read slow statements",
    tag="database",
    scope=Scope.ADMIN,
    parameters=(_LIMIT,),
    answers={
        200: Answer(
            description="the last ones, newest first",
            view=SlowQueriesView,
            headers=_NO_STORE_HEADER,
        )
    },
    problems=(RequestInvalid, OperatorNeeded),
)
