"""API keys: how one looks to its holder, what is kept of it, and who may do what with whose.

The holder's text is `tk_<environment>_<secret><checksum>`: the prefix lets secret scanners find
keys that leaked, the checksum lets them tell keys from look-alikes without asking anybody. Kept is
only the SHA-256. The secret is 256 random bits: neither salt nor a slow hash would add anything.

Invariant: what the table's constraints allow is an `ApiKey`, so no row can stop a refresh.
"""

import hashlib
import re
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, Literal
from uuid import UUID

from tollkeeper.access.errors import KeyInvalid
from tollkeeper.kernel.ids import TenantId
from tollkeeper.kernel.principal import Principal, Scope

Environment = Literal["dev", "live"]
"""`dev` keys are made by `tollkeeper up` for its own machine; a scanner may rank them lower."""

MAX_NAME_LENGTH: Final = 100
"""Characters of a key's name."""

MAX_TENANT_BYTES: Final = 128
"""Bytes of a tenant's id, as in the ledger."""

HASH_BYTES: Final = 32

GRACE_S: Final = 86_400
"""How long a rotated key goes on working unless it is said otherwise: a day to change it."""

MAX_GRACE_S: Final = 30 * 86_400
"""A longer grace is no rotation."""

MAX_LIFE_S: Final = 10 * 365 * 86_400
"""The latest expiry, from now: ten years."""

PAGE_LIMIT: Final = 1_000
"""Most keys or events in one page."""

OWNER: Final = "owner"
"""The actor of what was done as the owner of the database: on the command line, or by hand."""

_TOKEN = re.compile(r"(?P<signed>tk_(?:dev|live)_[0-9a-f]{64})(?P<checksum>[0-9a-f]{8})")


class KeyState(StrEnum):
    """What a key is good for."""

    ACTIVE = "active"
    GRACE = "grace"
    """Rotated: works until the end of its grace."""
    EXPIRED = "expired"
    REVOKED = "revoked"


class EventKind(StrEnum):
    """What was done to a key; `changed` and `deleted` are done by hand, in the database."""

    CREATED = "created"
    ROTATED = "rotated"
    REVOKED = "revoked"
    CHANGED = "changed"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """What is kept of a key. `scopes` may hold names that only a newer version knows."""

    key_id: UUID
    name: str
    token_hash: bytes
    scopes: tuple[str, ...]
    tenant_id: TenantId | None
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    replaced_by: UUID | None = None
    last_used_at: datetime | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.name) <= MAX_NAME_LENGTH or not _is_storable(self.name):
            raise KeyInvalid(field="name", fault=f"must be 1 to {MAX_NAME_LENGTH} characters")
        if not self.scopes:
            raise KeyInvalid(field="scopes", fault="must name at least one scope")
        if self.tenant_id is not None and not _is_tenant_id(self.tenant_id):
            raise KeyInvalid(field="tenant_id", fault=f"must be 1 to {MAX_TENANT_BYTES} bytes")
        assert len(self.token_hash) == HASH_BYTES

    def principal(self) -> Principal:
        """Return whom the key stands for, with what `admin` implies spelled out."""
        implied = frozenset(Scope) if Scope.ADMIN in self.scopes else frozenset()
        return Principal(
            key_id=self.key_id,
            scopes=implied.union(self.scopes),
            tenant_id=self.tenant_id,
        )

    def state(self, now: datetime) -> KeyState:
        """Return what the key is good for at a moment; it expires at `expires_at` itself."""
        if self.revoked_at is not None:
            return KeyState.REVOKED
        if self.expires_at is not None and self.expires_at <= now:
            return KeyState.EXPIRED
        return KeyState.ACTIVE if self.replaced_by is None else KeyState.GRACE


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyEvent:
    """Something that was done to a key, and the key after it; `actor` is a key's id or `OWNER`."""

    sequence: int
    created_at: datetime
    kind: EventKind
    actor: str
    key_id: UUID
    name: str
    scopes: tuple[str, ...]
    tenant_id: TenantId | None
    expires_at: datetime | None
    replaced_by: UUID | None


def tenant_for(by: Principal | None, tenant_id: TenantId | None) -> TenantId | None:
    """Return the tenant of a key that `by` (None: the owner) makes for `tenant_id` (None: unsaid).

    Raises:
        KeyInvalid: a key that is bound to a tenant makes keys of that tenant only.
    """
    if by is None or by.tenant_id is None:
        return tenant_id
    if tenant_id not in {None, by.tenant_id}:
        raise KeyInvalid(field="tenant_id", fault=f"must be {by.tenant_id}, as of your own key")
    return by.tenant_id


def check_scopes(by: Principal | None, scopes: Collection[str]) -> None:
    """Refuse to hand on more than one has.

    Raises:
        KeyInvalid: a scope that `by` does not have.
    """
    missing = set() if by is None else set(scopes) - by.scopes
    if missing:
        names = ", ".join(sorted(missing))
        raise KeyInvalid(field="scopes", fault=f"names what your own key does not allow: {names}")


def compose_token(environment: Environment, secret: bytes) -> str:
    """Return the text that the holder of a key sends."""
    signed = f"tk_{environment}_{secret.hex()}"
    return signed + _checksum(signed)


def is_token(text: str) -> bool:
    """Whether a text is a whole key, as opposed to a torn, cut or mistyped one."""
    match = _TOKEN.fullmatch(text)
    return match is not None and match["checksum"] == _checksum(match["signed"])


def hash_token(token: str) -> bytes:
    """Return what is kept of a key; any text has a hash, so that none needs a check before.

    Looking a hash up needs no constant time: what the time of a look-up could tell is how far the
    hash of a guess agrees with a kept one, and from a hash no way leads back to 256 random bits.
    The secret itself is compared nowhere.
    """
    return hashlib.sha256(token.encode(errors="replace")).digest()


def _checksum(signed: str) -> str:
    return f"{zlib.crc32(signed.encode()):08x}"


def _is_tenant_id(text: str) -> bool:
    return _is_storable(text) and 1 <= len(text.encode()) <= MAX_TENANT_BYTES


def _is_storable(text: str) -> bool:
    """Whether PostgreSQL can hold a text: no NUL, no half of a surrogate pair."""
    return not any(character == "\0" or "\ud800" <= character <= "\udfff" for character in text)
