"""Errors of the access slice. The errors of a request without any key are in `web/errors.py`.

AccessError
├── KeyUnknown                this key does not exist, or was revoked
├── KeyInvalid                a new key cannot be made as asked; `field` is at fault
└── KeysUnavailable           the keys were never read: the database is away since the start
"""

from dataclasses import dataclass

from tollkeeper.kernel.errors import TollkeeperError


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
class KeyInvalid(AccessError):
    """A new key cannot be made as asked."""

    field: str
    fault: str

    def message(self) -> str:
        """Name the field and its fault."""
        return f"{self.field} {self.fault}"


@dataclass(eq=False, kw_only=True)
class KeysUnavailable(AccessError):
    """No key can be judged: they could not be read even once."""

    def message(self) -> str:
        """Say that it is not the caller's fault."""
        return "API keys cannot be checked yet; try again"
