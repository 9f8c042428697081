"""What goes over the wire about keys: the bodies of the routes, and keys and events as they show.

What a body must be is said once, here; the OpenAPI document is made from the same structs. No view
has a place for a hash, and only `IssuedKeyView` has one for a token. Pure.
"""

from datetime import datetime
from typing import Annotated
from uuid import UUID

import msgspec
from msgspec import Meta

from tollkeeper.access.model import (
    GRACE_S,
    MAX_GRACE_S,
    MAX_LIFE_S,
    MAX_NAME_LENGTH,
    MAX_TENANT_BYTES,
    ApiKey,
    EventKind,
    KeyEvent,
    KeyState,
)
from tollkeeper.kernel.principal import Scope

TENANT_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._~:@!$&'()*+,;=|-]{0,127}(?![\s\S])"
"""Ids of tenants, as the ledger takes them: a key for another one could reach nothing."""

NAME_PATTERN = r"^[^\x00-\x1f\x7f]{1,100}(?![\s\S])"
"""Names are printed in tables: no control characters."""

Name = Annotated[
    str,
    Meta(
        pattern=NAME_PATTERN,
        min_length=1,
        max_length=MAX_NAME_LENGTH,
        description="what the key is for; need not be unique",
        examples=["billing"],
    ),
]
Scopes = Annotated[
    list[Scope],
    Meta(min_length=1, max_length=len(Scope), description="`admin` implies the others"),
]
TenantIdText = Annotated[
    str,
    Meta(
        pattern=TENANT_PATTERN,
        description=f"at most {MAX_TENANT_BYTES} characters; the key sees and moves nothing of "
        "other tenants. Null: it acts for all tenants, or for that of a caller who is bound",
        examples=["acme"],
    ),
]
LifeSeconds = Annotated[
    int,
    Meta(
        ge=1, le=MAX_LIFE_S, description="seconds until it expires; null: never", examples=[86400]
    ),
]
GraceSeconds = Annotated[
    int,
    Meta(ge=0, le=MAX_GRACE_S, description="seconds that the old key goes on working; 0: none"),
]

KeyIdText = Annotated[str, Meta(description="UUIDv7", extra_json_schema={"format": "uuid"})]
Moment = Annotated[
    str, Meta(description="UTC, RFC 3339", extra_json_schema={"format": "date-time"})
]
ScopeNames = Annotated[list[str], Meta(description="what it allows")]
Ending = Annotated[Moment | None, Meta(description="from then on it is refused; null: never")]
Successor = Annotated[KeyIdText | None, Meta(description="the key that rotation made in its place")]


class CreateKeyBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A key to make."""

    name: Name
    scopes: Scopes
    tenant_id: TenantIdText | None = None
    expires_in_s: LifeSeconds | None = None


class RotateKeyBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """How to change a key for a new one."""

    grace_s: GraceSeconds = GRACE_S
    expires_in_s: Annotated[
        LifeSeconds | None,
        Meta(description="seconds until the new key expires; null: when the old one would have"),
    ] = None


class RevokeKeyBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """How to end a key."""

    force: Annotated[
        bool, Meta(description="also if nobody can administer all keys afterwards")
    ] = False


class KeyView(msgspec.Struct):
    """A key as it may be shown: neither the token nor its hash."""

    key_id: KeyIdText
    name: str
    scopes: ScopeNames
    tenant_id: Annotated[str | None, Meta(description="null: it acts for every tenant")]
    state: Annotated[KeyState, Meta(description="`grace`: rotated, and works until `expires_at`")]
    created_at: Moment
    expires_at: Ending
    revoked_at: Moment | None
    replaced_by: Successor
    last_used_at: Annotated[
        Moment | None, Meta(description="to about half a minute; null: never seen in use")
    ]


class IssuedKeyView(KeyView):
    """A new key with its token, which is shown this once and kept nowhere."""

    token: Annotated[str, Meta(description="send it as `Authorization: Bearer <token>`")]


class KeyPage(msgspec.Struct):
    """Keys by id, which is by age; `next` is null on the last page."""

    items: list[KeyView]
    next: Annotated[str | None, Meta(description="send it as `after` for the next page")]


class KeyEventView(msgspec.Struct):
    """Something that was done to a key, and the key after it."""

    sequence: Annotated[int, Meta(description="its place in the trail; grows, may leave gaps")]
    created_at: Moment
    kind: EventKind
    actor: Annotated[str, Meta(description="the id of the key that asked for it, or `owner`")]
    key_id: KeyIdText
    name: str
    scopes: ScopeNames
    tenant_id: str | None
    expires_at: Ending
    replaced_by: Successor


class KeyEventPage(msgspec.Struct):
    """Events in their order; `next` is null on the last page."""

    items: list[KeyEventView]
    next: Annotated[str | None, Meta(description="send it as `after` for the next page")]


def key_view(key: ApiKey, now: datetime) -> KeyView:
    """Return a key as the API shows it."""
    return KeyView(
        key_id=str(key.key_id), name=key.name, scopes=list(key.scopes), tenant_id=key.tenant_id,
        state=key.state(now), created_at=_iso(key.created_at),
        expires_at=_iso_or_none(key.expires_at),
        revoked_at=_iso_or_none(key.revoked_at), replaced_by=_id_or_none(key.replaced_by),
        last_used_at=_iso_or_none(key.last_used_at),
    )  # fmt: skip


def issued_view(key: ApiKey, token: str, now: datetime) -> IssuedKeyView:
    """Return a new key as the API shows it, once."""
    view = key_view(key, now)
    members = {name: getattr(view, name) for name in KeyView.__struct_fields__}
    return IssuedKeyView(**members, token=token)


def event_view(event: KeyEvent) -> KeyEventView:
    """Return an event as the API shows it."""
    return KeyEventView(
        sequence=event.sequence, created_at=_iso(event.created_at), kind=event.kind,
        actor=event.actor, key_id=str(event.key_id), name=event.name, scopes=list(event.scopes),
        tenant_id=event.tenant_id, expires_at=_iso_or_none(event.expires_at),
        replaced_by=_id_or_none(event.replaced_by),
    )  # fmt: skip


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _iso_or_none(moment: datetime | None) -> str | None:
    return None if moment is None else _iso(moment)


def _id_or_none(identifier: UUID | None) -> str | None:
    return None if identifier is None else str(identifier)
