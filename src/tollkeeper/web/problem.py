"""Errors become RFC 9457 problem documents here, and only here.

An error knows nothing of HTTP. A table maps its type (or a base of it) to a `ProblemKind`; the
error's fields become extension members of the document, and no text of it shows a card number. The
same document answers a request and stands for an item of a batch. What is not in the table is our
bug: 500 without a detail, logged once with its traceback by whoever answers.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from http import HTTPStatus
from typing import Final
from uuid import UUID

import msgspec
import structlog
from litestar import Request, Response
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.types import Scope, Send

from tollkeeper.database.errors import DatabaseError, SchemaMissing
from tollkeeper.kernel.errors import TollkeeperError
from tollkeeper.telemetry.cards import mask_cards
from tollkeeper.telemetry.request import REQUEST_ID, current_request_id, note_problem
from tollkeeper.web.errors import (
    BodyTooLarge,
    FieldFault,
    IdempotencyKeyInvalid,
    IdempotencyKeyMissing,
    NotAuthenticated,
    NotReady,
    OperatorNeeded,
    RequestAborted,
    RequestInvalid,
    ScopeMissing,
    TooManyFailures,
)

MEDIA_TYPE: Final = "application/problem+json"
URN: Final = "urn:tollkeeper:problem:"

RETRY_AFTER_S = 1
"""Seconds to wait after a 429 or 503 whose error does not know better (`retry_after_s`)."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ProblemKind:
    """One row of a problem table. A private kind shows neither the error's words nor its facts."""

    status: int
    type: str
    title: str
    private: bool = False

    def __post_init__(self) -> None:
        if not self.type.startswith(URN) or not 400 <= self.status <= 599:
            raise ValueError(f"not a problem: {self.status} {self.type}")


ProblemTable = Mapping[type[TollkeeperError], ProblemKind]

INTERNAL = ProblemKind(500, URN + "internal-error", "Internal error", private=True)

ROUTE_NOT_FOUND = ProblemKind(404, URN + "route-not-found", "No such route")
METHOD_NOT_ALLOWED = ProblemKind(405, URN + "method-not-allowed", "Method Not Allowed")
MALFORMED = ProblemKind(400, URN + "malformed-http", "Not a request of HTTP/1.1")
HEAD_TOO_LARGE = ProblemKind(431, URN + "head-too-large", "Request head too large")
FRAMEWORK_PROBLEMS = (ROUTE_NOT_FOUND, METHOD_NOT_ALLOWED, MALFORMED, HEAD_TOO_LARGE, INTERNAL)
"""What any service can answer before or beside its own errors."""

_FRAMEWORK_KINDS = {kind.status: kind for kind in (ROUTE_NOT_FOUND, METHOD_NOT_ALLOWED)}

SHARED_PROBLEMS: ProblemTable = {
    NotAuthenticated: ProblemKind(401, URN + "not-authenticated", "Not authenticated"),
    TooManyFailures: ProblemKind(
        429, URN + "too-many-failures", "Too many requests without a valid key"
    ),
    ScopeMissing: ProblemKind(403, URN + "scope-missing", "The key does not allow this"),
    OperatorNeeded: ProblemKind(
        403, URN + "operator-needed", "The operator decides this, not a tenant"
    ),
    RequestInvalid: ProblemKind(400, URN + "invalid-request", "Invalid request"),
    RequestAborted: ProblemKind(400, URN + "request-aborted", "Request aborted"),
    BodyTooLarge: ProblemKind(413, URN + "body-too-large", "Body too large"),
    IdempotencyKeyMissing: ProblemKind(
        400, URN + "idempotency-key-missing", "Idempotency-Key is required"
    ),
    IdempotencyKeyInvalid: ProblemKind(
        400, URN + "idempotency-key-invalid", "Idempotency-Key cannot be used"
    ),
    NotReady: ProblemKind(503, URN + "not-ready", "The service is not ready"),
    SchemaMissing: ProblemKind(
        503, URN + "schema-missing", "The database is not migrated", private=True
    ),
    DatabaseError: ProblemKind(
        503, URN + "database-unavailable", "The database is not available", private=True
    ),
}
"""What any service can answer; a service's table adds those of its slices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One problem: what its kind says, what happened, and the facts."""

    status: int
    type: str
    title: str
    detail: str | None = None
    facts: Mapping[str, object] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, object]:
        """Return the JSON object; the standard members win over facts of the same name.

        Card numbers are masked in every text of it. Numbers stay: they are amounts.
        """
        document: dict[str, object] = {
            "type": self.type,
            "title": self.title,
            "status": self.status,
        }
        if self.detail is not None:
            document["detail"] = mask_cards(self.detail)
        for name, value in self.facts.items():
            document.setdefault(name, _masked(msgspec.to_builtins(value)))
        return document


def problem_of(error: Exception, table: ProblemTable) -> Problem:
    """Describe an error; one that the table does not know is an internal error."""
    kind = kind_of(type(error), table)
    if kind.private:
        facts: dict[str, object] = {}
        detail = None
    else:
        detail = str(error)
        facts = _facts_of(error, detail)
    return Problem(
        status=kind.status,
        type=kind.type,
        title=kind.title,
        detail=detail,
        facts=facts,
        headers=_headers_of(error, kind.status),
    )


def kind_of(error: type[Exception], table: ProblemTable) -> ProblemKind:
    """Return the kind of the nearest base in the table, `INTERNAL` when there is none."""
    for base in error.__mro__:
        kind = table.get(base)
        if kind is not None:
            return kind
    return INTERNAL


async def send_problem(send: Send, problem: Problem) -> None:
    """Answer a request with a problem, in plain ASGI."""
    note_problem(problem.type, cause=None)
    body = _encoded(problem)
    headers = [
        (b"content-type", MEDIA_TYPE.encode()),
        (b"content-length", b"%d" % len(body)),
        *((name.lower().encode(), value.encode()) for name, value in problem.headers.items()),
    ]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def exception_handlers(
    table: ProblemTable,
) -> dict[
    int | type[Exception], Callable[[Request[None, None, State], Exception], Response[bytes]]
]:
    """Return what Litestar calls for every exception of a route or of its own."""

    def answer(request: Request[None, None, State], error: Exception) -> Response[bytes]:
        if isinstance(error, HTTPException):
            problem = _framework_problem(error, table)
        else:
            problem = problem_of(error, table)
        log_failure(request.scope, problem, error)
        return Response(
            content=_encoded(problem),
            status_code=problem.status,
            media_type=MEDIA_TYPE,
            headers=dict(problem.headers),
        )

    return {Exception: answer}


def log_failure(scope: Scope, problem: Problem, error: Exception) -> None:
    """Log what no rule foresaw, once, where it becomes an answer.

    What was foreseen and is still our fault goes into the request's own line.
    """
    note_problem(problem.type, cause=error if problem.status > INTERNAL.status else None)
    if problem.status == INTERNAL.status:
        _log.error(
            "web.request_failed", method=scope.get("method"), path=scope["path"], exc_info=error
        )


def _encoded(problem: Problem) -> bytes:
    """Return the document that answers the current request, with its id."""
    document = problem.document()
    request_id = current_request_id()
    if request_id is not None:
        document[REQUEST_ID] = request_id
    return msgspec.json.encode(document)


def _facts_of(error: Exception, detail: str) -> dict[str, object]:
    """Return the error's fields; one that only repeats the detail is no fact."""
    if not isinstance(error, TollkeeperError):
        return {}
    facts = {item.name: getattr(error, item.name) for item in fields(error)}
    return {
        name: value
        for name, value in facts.items()
        if isinstance(value, _JSON_TYPES) and value != detail
    }


_JSON_TYPES = (str, int, float, type(None), UUID, datetime, tuple, dict)
"""What a fact may be; a field of another type (a cause, an object) is not for callers."""


def _masked(value: object) -> object:
    if isinstance(value, str):
        return mask_cards(value)
    if isinstance(value, list | tuple):
        return [_masked(inner) for inner in value]
    if isinstance(value, dict):
        return {name: _masked(inner) for name, inner in value.items()}
    return value


def _headers_of(error: Exception, status: int) -> dict[str, str]:
    if status in {429, 503}:
        wait_s = getattr(error, "retry_after_s", RETRY_AFTER_S)
        return {"Retry-After": str(max(1, math.ceil(wait_s)))}
    if status == 401:
        reason = "" if isinstance(error, NotAuthenticated) else ' error="invalid_token"'
        return {"WWW-Authenticate": f"Bearer{reason}"}
    if isinstance(error, ScopeMissing):
        return {"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{error.needed}"'}
    return {}


def _framework_problem(error: HTTPException, table: ProblemTable) -> Problem:
    """Describe what Litestar itself refused: no route, a wrong method, a bad parameter."""
    status = error.status_code
    if status >= 500:
        return problem_of(error, {})
    if status == 400:
        return problem_of(RequestInvalid(errors=_faults_of(error)), table)
    phrase = HTTPStatus(status).phrase
    slug = phrase.lower().replace(" ", "-")
    kind = _FRAMEWORK_KINDS.get(status) or ProblemKind(status, URN + slug, phrase)
    return Problem(
        status=status, type=kind.type, title=kind.title, headers=dict(error.headers or {})
    )


def _faults_of(error: HTTPException) -> tuple[FieldFault, ...]:
    items = error.extra if isinstance(error.extra, list) else []
    found = [
        FieldFault(field=str(item.get("key", "request")), detail=str(item["message"]))
        for item in items
        if isinstance(item, dict) and "message" in item
    ]
    return tuple(found) or (FieldFault(field="request", detail=error.detail),)
