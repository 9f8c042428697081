"""Bearer keys, as plain ASGI around the application: no principal, no route.

Closed by default: only the paths listed here answer without a key. How keys are kept is not known
here; `principal_of` is passed in, costs no round trip and raises an error of the problem table.

Who shows no valid key too often is answered 429 instead of 401 (`attempts.py`). The key is judged
first, so a valid one is answered whatever else comes from its address. The address is the peer's:
what a header says of it, anybody can write. Behind a proxy all its callers share one.
"""

from collections import Counter
from collections.abc import Callable, Iterable

import structlog
from litestar.types import ASGIApp, Receive, Scope, Send

from tollkeeper.kernel import principal as who
from tollkeeper.kernel.clock import Clock
from tollkeeper.kernel.errors import TollkeeperError
from tollkeeper.kernel.principal import Principal
from tollkeeper.web.attempts import FailedAttempts
from tollkeeper.web.errors import NotAuthenticated, ScopeMissing, TooManyFailures
from tollkeeper.web.problem import ProblemTable, problem_of, send_problem

OPEN_PATHS = frozenset({"/health", "/health/ready", "/metrics", "/schema"})
OPEN_PREFIX = "/schema/"

UNAUTHENTICATED = 401
"""The status that counts as a failed attempt."""

_log = structlog.get_logger(__name__)

PrincipalOf = Callable[[str], Principal]
"""Returns whom a key stands for, or raises: the error's status is in the problem table."""


class AuthenticationTally:
    """How authentications ended; plain numbers, because each request pays for counting."""

    __slots__ = ("accepted", "refused")

    def __init__(self) -> None:
        self.accepted = 0
        self.refused: Counter[type[TollkeeperError]] = Counter()


class Authentication:
    """Answers 401 to requests without a valid key; others carry `scope["state"]["principal"]`."""

    __slots__ = ("_app", "_attempts", "_clock", "_principal_of", "_problems", "_tally")

    def __init__(
        self,
        app: ASGIApp,
        *,
        principal_of: PrincipalOf,
        problems: ProblemTable,
        clock: Clock,
        tally: AuthenticationTally,
    ) -> None:
        self._app = app
        self._principal_of = principal_of
        self._problems = problems
        self._clock = clock
        self._tally = tally
        self._attempts = FailedAttempts()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Find out who asks, or refuse."""
        if scope["type"] == "lifespan" or is_open(scope["path"]):  # type: ignore[comparison-overlap]  # Litestar's Scope leaves lifespan out
            await self._app(scope, receive, send)
            return
        try:
            principal = self._principal_of(bearer_key(scope["headers"]))
        except TollkeeperError as error:
            answered = self._refuse(scope, error)
            self._tally.refused[type(answered)] += 1
            await send_problem(send, problem_of(answered, self._problems))
            return
        self._tally.accepted += 1
        scope.setdefault("state", {})["principal"] = principal
        await self._app(scope, receive, send)

    def _refuse(self, scope: Scope, error: TollkeeperError) -> TollkeeperError:
        """Return what to answer: the error, or that there were too many of them."""
        if problem_of(error, self._problems).status != UNAUTHENTICATED:
            return error
        client = scope["client"]
        address = client[0] if client is not None else ""
        wait_s = self._attempts.wait_s(address, self._clock.monotonic_s())
        if wait_s > 0:
            return TooManyFailures(retry_after_s=wait_s)
        # Who it was is known of an expired key only. A key's text is never logged.
        facts = {name: getattr(error, name, None) for name in ("key_id", "tenant_id")}
        _log.info(
            "access.authentication_refused",
            reason=type(error).__name__,
            address=address,
            **{name: str(value) for name, value in facts.items() if value is not None},
        )
        return error


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
