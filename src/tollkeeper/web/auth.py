"""Bearer keys, as plain ASGI around the application: no principal, no route.

Closed by default: only the paths listed here answer without a key. How keys are kept is not known
here; `principal_of` is passed in, costs no round trip and raises an error of the problem table.
"""

from collections.abc import Callable, Iterable

from litestar.types import ASGIApp, Receive, Scope, Send

from tollkeeper.kernel import principal as who
from tollkeeper.kernel.errors import TollkeeperError
from tollkeeper.kernel.principal import Principal
from tollkeeper.web.errors import NotAuthenticated, ScopeMissing
from tollkeeper.web.problem import ProblemTable, problem_of, send_problem

OPEN_PATHS = frozenset({"/health", "/health/ready", "/metrics", "/schema"})
OPEN_PREFIX = "/schema/"

PrincipalOf = Callable[[str], Principal]
"""Returns whom a key stands for, or raises: the error's status is in the problem table."""


class Authentication:
    """Answers 401 to requests without a valid key; others carry `scope["state"]["principal"]`."""

    __slots__ = ("_app", "_principal_of", "_problems")

    def __init__(self, app: ASGIApp, *, principal_of: PrincipalOf, problems: ProblemTable) -> None:
        self._app = app
        self._principal_of = principal_of
        self._problems = problems

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Find out who asks, or refuse."""
        if scope["type"] == "lifespan" or is_open(scope["path"]):  # type: ignore[comparison-overlap]  # Litestar's Scope leaves lifespan out
            await self._app(scope, receive, send)
            return
        try:
            principal = self._principal_of(bearer_key(scope["headers"]))
        except TollkeeperError as error:
            await send_problem(send, problem_of(error, self._problems))
            return
        scope.setdefault("state", {})["principal"] = principal
        await self._app(scope, receive, send)


def is_open(path: str) -> bool:
    """Whether a path answers without a key."""
    return path in OPEN_PATHS or path.startswith(OPEN_PREFIX)


def bearer_key(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the key of `Authorization: Bearer <key>` (RFC 6750, section 2.1).

    Raises:
        NotAuthenticated: none, several, another scheme, or nothing after the scheme.
    """
    found: bytes | None = None
    for name, value in headers:
        if name == b"authorization":
            if found is not None:
                raise NotAuthenticated(reason="send one Authorization header, not several")
            found = value
    if found is None:
        raise NotAuthenticated(reason="send Authorization: Bearer <API key>")
    scheme, _, key = found.partition(b" ")
    key = key.strip()
    if scheme.lower() != b"bearer" or not key:
        raise NotAuthenticated(reason="the Authorization header must be Bearer <API key>")
    return key.decode("latin-1")


def authorize(scope: Scope, needed: who.Scope) -> Principal:
    """Return the principal of a request that may do what `needed` allows.

    Raises:
        ScopeMissing: the key does not carry the scope.
    """
    principal: Principal = scope["state"]["principal"]
    if needed not in principal.scopes:
        raise ScopeMissing(needed=needed)
    return principal
