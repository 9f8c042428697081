"""Answers a service's busiest routes without the framework's routing and handler layers.

Plain ASGI between authentication and Litestar: `POST {prefix}{name}/{ending}`, and `POST` to one of
some paths, go straight to their answers; everything else passes on. Litestar knows the same routes,
with the same answers, for the OpenAPI document and for paths written in another way (a trailing
slash).
"""

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

from tollkeeper.web.answer import JsonAnswer
from tollkeeper.web.problem import ProblemTable, log_failure, problem_of, send_problem

Answering = Callable[[Scope, Receive, str], Awaitable[JsonAnswer]]
"""Answers; the last argument is the name in the path, or "". Raises what the table knows."""


class Express:
    """Answers `POST {prefix}{name}/{ending}` for the endings in `routes`, and `POST` to `paths`.

    `parameter` is what the framework calls the name in the route's template.
    """

    __slots__ = ("_app", "_paths", "_prefix", "_problems", "_routes", "_templates")

    def __init__(
        self,
        app: ASGIApp,
        *,
        prefix: str,
        parameter: str,
        routes: Mapping[str, Answering],
        problems: ProblemTable,
        paths: Mapping[str, Answering] = MappingProxyType({}),
    ) -> None:
        self._app = app
        self._paths = paths
        self._prefix = prefix
        self._templates = {ending: f"{prefix}{{{parameter}}}/{ending}" for ending in routes}
        self._routes = routes
        self._problems = problems

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        answering, name, template = None, "", ""
        if scope["type"] == ScopeType.HTTP and scope["method"] == "POST":
            path = template = scope["path"]
            if path.startswith(self._prefix):
                name, _, ending = path[len(self._prefix) :].partition("/")
                answering = self._routes.get(ending)
                template = self._templates.get(ending, path)
            if answering is None:
                answering, name = self._paths.get(path), ""
        if answering is None:
            await self._app(scope, receive, send)
            return
        scope["path_template"] = template
        try:
            response = await answering(scope, receive, name)
        except Exception as error:  # noqa: BLE001  # the edge: the table decides what a caller sees
            problem = problem_of(error, self._problems)
            log_failure(scope, problem, error)
            await send_problem(send, problem)
            return
        await response(scope, receive, send)
