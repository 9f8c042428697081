"""Errors of the access slice. The errors of a request without any key are in `web/errors.py`.

AccessError
├── KeyUnknown                this key does not exist, or was revoked
├── KeyExpired                this key's time is over
├── KeysUnavailable           the keys were never read: the database is away since the start
├── KeyInvalid                a new key cannot be made as asked; `field` is at fault
├── KeyNotFound               no key has this id, or it is another tenant's
├── KeyEnded                  a key that was revoked or has expired cannot be rotated
├── KeyRotated                it was rotated before; `replaced_by` is the one to rotate
├── LastAdminKey              nobody could administer keys if this one were revoked
└── AdminKeyExists            there is a key that can make others: no first one is needed
"""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from tollkeeper.kernel.errors import TollkeeperError
from tollkeeper.kernel.ids import TenantId


@dataclass(eq=False, kw_only=True)
class AccessError(TollkeeperError):
    """Base of the access slice's errors."""


@dataclass(eq=False, kw_only=True)
class KeyUnknown(AccessError):
    """No such key; a revoked one is treated alike, for its holder may be a thief."""

    def message(self) -> str:
        """Say what may be wrong, and nothing of the key."""
        return "this API key does not exist or was revoked"


@dataclass(eq=False, kw_only=True)
class KeyExpired(AccessError):
    """The key's time is over: its own, or the grace after it was rotated."""

    key_id: UUID
    tenant_id: TenantId | None
    expired_at: datetime

    def message(self) -> str:
        """Say when."""
        return f"this API key expired at {_moment(self.expired_at)}"


@dataclass(eq=False, kw_only=True)
class KeysUnavailable(AccessError):
    """No key can be judged: they could not be read even once."""

    reason: str

    def message(self) -> str:
        """Say what is missing; it is not the caller's fault."""
        return f"API keys cannot be checked yet: {self.reason}"


@dataclass(eq=False, kw_only=True)
class KeyInvalid(AccessError):
    """A new key cannot be made as asked."""

    field: str
    fault: str

    def message(self) -> str:
        """Name the field and its fault."""
        return f"{self.field} {self.fault}"


@dataclass(eq=False, kw_only=True)
class KeyNotFound(AccessError):
    """No key has this id, or it is another tenant's."""

    key_id: UUID

    def message(self) -> str:
        """Name the id."""
        return f"there is no key {self.key_id}"


@dataclass(eq=False, kw_only=True)
class KeyEnded(AccessError):
    """A key that was revoked or has expired cannot be rotated."""

    key_id: UUID

    def message(self) -> str:
        """Say what to do instead."""
        return f"the key {self.key_id} was revoked or has expired: create a new one"


@dataclass(eq=False, kw_only=True)
class KeyRotated(AccessError):
    """The key was rotated before."""

    key_id: UUID
    replaced_by: UUID

    def message(self) -> str:
        """Name the key that took its place."""
        return (
            f"the key {self.key_id} was rotated already: rotate {self.replaced_by}, which took "
            "its place"
        )


@dataclass(eq=False, kw_only=True)
class LastAdminKey(AccessError):
    """Nobody could administer keys if this one were revoked."""

    key_id: UUID

    def message(self) -> str:
        """Say what to do about it."""
        return (
            f"{self.key_id} is the last key that can administer all keys: create another one "
            "first, or force it"
        )


@dataclass(eq=False, kw_only=True)
class AdminKeyExists(AccessError):
    """There is a key that can make others, so no first one is needed."""

    def message(self) -> str:
        """Say what to do instead."""
        return (
            "there is a usable key with the scope admin already: create keys with it, or force "
            "another first key"
        )


def _moment(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
