"""API keys: how one looks to its holder, and what is kept of it.

The holder's text is `tk_<environment>_<secret><checksum>`: the prefix lets secret scanners find
keys that leaked, the checksum lets them tell keys from look-alikes without asking anybody. Kept is
only the SHA-256. The secret is 256 random bits: neither salt nor a slow hash would add anything.

Invariant: what the table's constraints allow is an `ApiKey`, so no row can stop a refresh.
"""

import hashlib
import re
import zlib
from dataclasses import dataclass
from datetime import datetime
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

_TOKEN = re.compile(r"(?P<signed>tk_(?:dev|live)_[0-9a-f]{64})(?P<checksum>[0-9a-f]{8})")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """What is kept of a key. `scopes` may hold names that only a newer version knows."""

    key_id: UUID
    name: str
    token_hash: bytes
    scopes: tuple[str, ...]
    tenant_id: TenantId | None
    created_at: datetime

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


def compose_token(environment: Environment, secret: bytes) -> str:
    """Return the text that the holder of a key sends."""
    signed = f"tk_{environment}_{secret.hex()}"
    return signed + _checksum(signed)


def is_token(text: str) -> bool:
    """Whether a text is a whole key, as opposed to a torn, cut or mistyped one."""
    match = _TOKEN.fullmatch(text)
    return match is not None and match["checksum"] == _checksum(match["signed"])


def hash_token(token: str) -> bytes:
    """Return what is kept of a key; any text has a hash, so that none needs a check before."""
    return hashlib.sha256(token.encode(errors="replace")).digest()


def _checksum(signed: str) -> str:
    return f"{zlib.crc32(signed.encode()):08x}"


def _is_tenant_id(text: str) -> bool:
    return _is_storable(text) and 1 <= len(text.encode()) <= MAX_TENANT_BYTES


def _is_storable(text: str) -> bool:
    """Whether PostgreSQL can hold a text: no NUL, no half of a surrogate pair."""
    return not any(character == "\0" or "\ud800" <= character <= "\udfff" for character in text)
