"""Who is asking: the scopes a key may carry and the principal a valid key stands for.

How keys are kept and checked knows `access`, how they travel `web/auth.py`.
"""

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from tollkeeper.kernel.ids import TenantId


class Scope(StrEnum):
    """What a key allows. Scopes do not imply each other, except that `admin` implies all."""

    CREDITS_READ = "credits:read"
    CREDITS_WRITE = "credits:write"
    SHADOW_READ = "shadow:read"
    SHADOW_WRITE = "shadow:write"
    SHADOW_ASSIGN = "shadow:assign"
    SHADOW_DEPLOY = "shadow:deploy"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """The holder of a valid key."""

    key_id: UUID
    scopes: frozenset[str]  # all it allows, what `admin` implies spelled out: one look into a set
    tenant_id: TenantId | None  # None: the key is not bound to a tenant
