"""Who is asking: the scopes a key may carry and the principal a valid key stands for.

Not how keys are kept or checked (`access`) and not how they travel (`web/auth.py`): only the noun
that those two and every slice with routes share.
"""

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from tollkeeper.kernel.ids import TenantId


class Scope(StrEnum):
    """What a key allows. Scopes do not imply each other, except that `admin` implies all."""

    CREDITS_READ = "credits:read"
    CREDITS_WRITE = "credits:write"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """The holder of a valid key; `tenant_id` is None when the key is not bound to a tenant.

    `scopes` holds everything the key allows, with what `admin` implies already spelled out, so
    that asking is one look into a set.
    """

    key_id: UUID
    scopes: frozenset[str]
    tenant_id: TenantId | None
