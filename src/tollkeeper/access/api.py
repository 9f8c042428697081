"""Keys over HTTP: the routes that administer them, and which error is which problem.

All need the scope `admin`. A key that is bound to a tenant administers the keys of that tenant.

Making a key is the one write here that a retry would repeat: no idempotency key, because the answer
carries a secret that must not be kept to be answered again. A lost answer leaves a key whose token
nobody has: harmless, listed, and revoked by its id. Rotating again is refused, and names the
successor, which can be rotated in turn. Revoking again changes nothing.
"""

from uuid import UUID

import msgspec
from litestar import Request, get, post
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.spec import Parameter, Schema
from litestar.openapi.spec.enums import OpenAPIFormat, OpenAPIType

from tollkeeper.access.errors import (
    AdminKeyExists,
    KeyEnded,
    KeyExpired,
    KeyInvalid,
    KeyNotFound,
    KeyRotated,
    KeysUnavailable,
    KeyUnknown,
    LastAdminKey,
)
from tollkeeper.access.issuer import IssuedKey, KeyIssuer
from tollkeeper.access.messages import (
    CreateKeyBody,
    IssuedKeyView,
    KeyEventPage,
    KeyPage,
    KeyView,
    RevokeKeyBody,
    RotateKeyBody,
    event_view,
    issued_view,
    key_view,
)
from tollkeeper.access.model import GRACE_S, PAGE_LIMIT
from tollkeeper.access.service import AccessService
from tollkeeper.kernel.clock import Clock
from tollkeeper.kernel.ids import TenantId
from tollkeeper.kernel.principal import Scope
from tollkeeper.web.answer import JsonAnswer
from tollkeeper.web.auth import authorize
from tollkeeper.web.body import decode_body, read_body
from tollkeeper.web.errors import FieldFault, RequestInvalid
from tollkeeper.web.openapi import Answer, Body, DocumentedOperation, RouteFacts, documented
from tollkeeper.web.problem import URN, ProblemKind, ProblemTable
from tollkeeper.web.query import query_of, refuse_query

PROBLEMS: ProblemTable = {
    KeyUnknown: ProblemKind(401, URN + "key-unknown", "Unknown API key"),
    KeyExpired: ProblemKind(401, URN + "key-expired", "The API key has expired"),
    KeysUnavailable: ProblemKind(503, URN + "keys-unavailable", "Keys cannot be checked"),
    KeyInvalid: ProblemKind(400, URN + "key-invalid", "The key cannot be made"),
    KeyNotFound: ProblemKind(404, URN + "key-not-found", "Key not found"),
    KeyEnded: ProblemKind(409, URN + "key-ended", "The key was revoked or has expired"),
    KeyRotated: ProblemKind(409, URN + "key-rotated", "The key was rotated already"),
    LastAdminKey: ProblemKind(409, URN + "last-admin-key", "The last key that administers keys"),
    AdminKeyExists: ProblemKind(409, URN + "admin-key-exists", "Not the first key"),
}

PAGE_DEFAULT = 100
"""Keys or events in a page that does not ask for another number."""

MAX_SEQUENCE = 2**63 - 1

_ENCODER = msgspec.json.Encoder()
_NO_STORE = ((b"cache-control", b"no-store"),)
"""On answers with a token: nothing on the way may keep it."""

_AnyRequest = Request[None, None, State]


class KeysApi:
    """The routes of keys around those who make and check them."""

    def __init__(
        self, issuer: KeyIssuer, access: AccessService, *, clock: Clock, problems: ProblemTable
    ) -> None:
        self._issuer = issuer
        self._access = access
        self._clock = clock
        self._problems = problems
        self._create_decoder = msgspec.json.Decoder(CreateKeyBody)
        self._rotate_decoder = msgspec.json.Decoder(RotateKeyBody)
        self._revoke_decoder = msgspec.json.Decoder(RevokeKeyBody)

    def routes(self) -> list[HTTPRouteHandler]:
        """Return the route handlers."""
        key, said = "/v1/keys/{key_id:str}", self._said
        return [
            post("/v1/keys", operation_class=said(_CREATE))(self.create_key),
            get("/v1/keys", operation_class=said(_LIST))(self.list_keys),
            post(f"{key}/rotate", operation_class=said(_ROTATE))(self.rotate_key),
            post(f"{key}/revoke", operation_class=said(_REVOKE))(self.revoke_key),
            get("/v1/keys/events", operation_class=said(_EVENTS))(self.list_key_events),
        ]

    async def create_key(self, request: _AnyRequest) -> JsonAnswer:
        """Make a key; its token is in this answer and nowhere else.

        Every process of the service accepts it within 5 seconds. When no answer came, a key may
        have been made whose token nobody has: find it in the list, revoke it, and ask again.
        """
        principal = authorize(request.scope, Scope.ADMIN)
        refuse_query(request.scope)
        body = decode_body(self._create_decoder, await read_body(request.receive))
        issued = await self._issuer.create_key(
            body.name,
            scopes=body.scopes,
            tenant_id=None if body.tenant_id is None else TenantId(body.tenant_id),
            expires_in_s=body.expires_in_s,
            by=principal,
        )
        return await self._issued(issued)

    async def list_keys(self, request: _AnyRequest) -> JsonAnswer:
        """Read a page of keys, oldest first, revoked and expired ones too."""
        principal = authorize(request.scope, Scope.ADMIN)
        query = query_of(request.scope, _AFTER_KEY.name, _LIMIT.name)
        after, limit = query.get("after"), _limit_of(query)
        found = await self._issuer.list_keys(
            after=None if after is None else _uuid_of("after", after), limit=limit + 1, by=principal
        )
        now, page = self._clock.now(), found[:limit]
        following = str(page[-1].key_id) if len(found) > limit else None
        return _answer(KeyPage([key_view(key, now) for key in page], following))

    async def rotate_key(self, request: _AnyRequest) -> JsonAnswer:
        """Change a key for a new one: the same name, scopes and tenant, another secret and id.

        The old one goes on working for the grace, a day if nothing is said, but not beyond its own
        expiry. A key is rotated once: asking again is refused and names the successor.
        """
        principal = authorize(request.scope, Scope.ADMIN)
        refuse_query(request.scope)
        key_id = _key_id_of(request)
        raw = await read_body(request.receive)
        body = decode_body(self._rotate_decoder, raw or b"{}")
        issued = await self._issuer.rotate_key(
            key_id, grace_s=body.grace_s, expires_in_s=body.expires_in_s, by=principal
        )
        return await self._issued(issued)

    async def revoke_key(self, request: _AnyRequest) -> JsonAnswer:
        """End a key for good; every process of the service refuses it within 5 seconds.

        Revoking it again changes nothing. The last usable key that can administer all keys is
        revoked only with `force`.
        """
        principal = authorize(request.scope, Scope.ADMIN)
        refuse_query(request.scope)
        key_id = _key_id_of(request)
        raw = await read_body(request.receive)
        body = decode_body(self._revoke_decoder, raw or b"{}")
        key = await self._issuer.revoke_key(key_id, is_forced=body.force, by=principal)
        await self._access.see_change()
        return _answer(key_view(key, self._clock.now()))

    async def list_key_events(self, request: _AnyRequest) -> JsonAnswer:
        """Read a page of what was done to keys, and by whom, oldest first."""
        principal = authorize(request.scope, Scope.ADMIN)
        query = query_of(request.scope, _AFTER_EVENT.name, _LIMIT.name)
        limit = _limit_of(query)
        behind = _whole_number("after", query.get("after", "0"), 0, MAX_SEQUENCE)
        found = await self._issuer.list_events(after=behind, limit=limit + 1, by=principal)
        page = found[:limit]
        following = str(page[-1].sequence) if len(found) > limit else None
        return _answer(KeyEventPage([event_view(event) for event in page], following))

    async def _issued(self, issued: IssuedKey) -> JsonAnswer:
        # Known here at once, so that the caller can use it; elsewhere with the next refresh.
        await self._access.see_change()
        view = issued_view(issued.key, issued.token, self._clock.now())
        return _answer(view, 201, _NO_STORE)

    def _said(self, facts: RouteFacts) -> type[DocumentedOperation]:
        return documented(facts, self._problems)


def _key_id_of(request: _AnyRequest) -> UUID:
    return _uuid_of("key_id", request.scope["path_params"]["key_id"])


def _uuid_of(field: str, text: str) -> UUID:
    try:
        found = UUID(text)
    except ValueError:
        found = None
    if found is None or str(found) != text.lower():  # UUID() takes braces and missing dashes
        raise _invalid(field, "must be a UUID, as in a list of keys")
    return found


def _limit_of(query: dict[str, str]) -> int:
    return _whole_number("limit", query.get("limit", str(PAGE_DEFAULT)), 1, PAGE_LIMIT)


def _whole_number(field: str, text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and least <= int(text) <= most):
        raise _invalid(field, f"must be a whole number from {least} to {most}")
    return int(text)


def _invalid(field: str, detail: str) -> RequestInvalid:
    return RequestInvalid(errors=(FieldFault(field=field, detail=detail),))


def _answer(
    view: KeyView | KeyPage | KeyEventPage,
    status: int = 200,
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> JsonAnswer:
    return JsonAnswer(_ENCODER.encode(view), status, headers)


_KEY_ID = Parameter(
    name="key_id",
    param_in="path",
    required=True,
    description="as in a list of keys",
    schema=Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.UUID),
    example="0190a5a0-0000-7000-8000-000000000000",
)
_AFTER_KEY = Parameter(
    name="after",
    param_in="query",
    required=False,
    description="`next` of the page before; left out: from the start",
    schema=Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.UUID),
)
_AFTER_EVENT = Parameter(
    name="after",
    param_in="query",
    required=False,
    description="`next` of the page before; left out: from the start",
    schema=Schema(type=OpenAPIType.STRING, pattern="^[0-9]{1,19}$"),
)
_LIMIT = Parameter(
    name="limit",
    param_in="query",
    required=False,
    description="items in the page",
    schema=Schema(type=OpenAPIType.INTEGER, minimum=1, maximum=PAGE_LIMIT, default=PAGE_DEFAULT),
    example=10,
)
_NO_STORE_HEADER: dict[str, dict[str, object]] = {
    "Cache-Control": {
        "description": "a token is not to be kept on the way",
        "schema": {"type": "string", "const": "no-store"},
    }
}
_CREATE = RouteFacts(
    summary="Create a key",
    tag="keys",
    scope=Scope.ADMIN,
    body=Body(
        struct=CreateKeyBody,
        example={"name": "billing", "scopes": ["credits:read"], "tenant_id": "acme"},
    ),
    answers={
        201: Answer(
            description="the key and, this once, its token",
            view=IssuedKeyView,
            headers=_NO_STORE_HEADER,
        )
    },
    problems=(KeyInvalid,),
)
_LIST = RouteFacts(
    summary="List keys",
    tag="keys",
    scope=Scope.ADMIN,
    parameters=(_AFTER_KEY, _LIMIT),
    answers={200: Answer(description="a page, oldest first", view=KeyPage)},
    problems=(RequestInvalid,),
)
_ROTATE = RouteFacts(
    summary="Rotate a key",
    tag="keys",
    scope=Scope.ADMIN,
    parameters=(_KEY_ID,),
    body=Body(struct=RotateKeyBody, example={"grace_s": GRACE_S}, is_required=False),
    answers={
        201: Answer(
            description="the new key and, this once, its token",
            view=IssuedKeyView,
            headers=_NO_STORE_HEADER,
        )
    },
    problems=(KeyInvalid, KeyNotFound, KeyEnded, KeyRotated),
)
_REVOKE = RouteFacts(
    summary="Revoke a key",
    tag="keys",
    scope=Scope.ADMIN,
    parameters=(_KEY_ID,),
    body=Body(struct=RevokeKeyBody, example={"force": False}, is_required=False),
    answers={200: Answer(description="the key as it is now", view=KeyView)},
    problems=(KeyNotFound, LastAdminKey),
)
_EVENTS = RouteFacts(
    summary="Read what was done to keys",
    tag="keys",
    scope=Scope.ADMIN,
    parameters=(_AFTER_EVENT, _LIMIT),
    answers={200: Answer(description="a page, oldest first", view=KeyEventPage)},
    problems=(RequestInvalid,),
)
