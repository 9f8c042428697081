"""Which request a log line belongs to.

A request's task carries its state (id, and whom its key stands for) in a context variable; every
event that is logged from there gets the ids. Tasks that work for many requests at a time keep the
ids of those they work for, and name them by `request_ids`.
"""

from collections.abc import Iterable, Mapping, MutableMapping
from contextvars import ContextVar
from typing import Final

from structlog.types import EventDict

from tollkeeper.kernel.principal import Principal

REQUEST_ID: Final = "request_id"
PRINCIPAL: Final = "principal"
PROBLEM: Final = "problem"
CAUSE: Final = "cause"
"""Names in a request's state; only the first is there from the start."""

IDS_LIMIT: Final = 10
"""Most request ids in one line."""

current_request: ContextVar[MutableMapping[str, object] | None] = ContextVar(
    "tollkeeper.request", default=None
)
"""The state of the request that this task answers."""


def add_request(_: object, __: str, event: EventDict) -> EventDict:
    """Add the request's id, and tenant and id of its key; a structlog processor."""
    state = current_request.get()
    if state is not None:
        event.setdefault(REQUEST_ID, state[REQUEST_ID])
        principal = state.get(PRINCIPAL)
        if isinstance(principal, Principal):
            event.setdefault("key_id", str(principal.key_id))
            if principal.tenant_id is not None:
                event.setdefault("tenant_id", principal.tenant_id)
    return event


def current_request_id() -> str | None:
    """Return the id of the request that this task answers, if it answers one."""
    state = current_request.get()
    return None if state is None else str(state[REQUEST_ID])


def note_problem(type_uri: str, *, cause: Exception | None) -> None:
    """Keep which problem answers the current request, for its line in the log."""
    state = current_request.get()
    if state is not None:
        state[PROBLEM] = type_uri
        if cause is not None:
            state[CAUSE] = repr(cause)


def ids_of(requests: Iterable[Mapping[str, object] | None]) -> tuple[str, ...]:
    """Return the distinct ids of requests, the first `IDS_LIMIT` of them."""
    found: dict[str, None] = {}
    for state in requests:
        if state is not None:
            found.setdefault(str(state[REQUEST_ID]))
            if len(found) == IDS_LIMIT:
                break
    return tuple(found)
