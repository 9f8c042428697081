"""The rows of API keys: runs `queries.sql` on a given connection. Decides nothing."""

from collections.abc import Mapping
from datetime import datetime
from uuid import UUID

from tollkeeper.access.model import ApiKey, EventKind, KeyEvent
from tollkeeper.database.driver import Connection, Row
from tollkeeper.database.queries import load_queries
from tollkeeper.kernel.ids import TenantId

STATEMENT_TIMEOUT_S = 5.0
"""Each statement reads or writes a handful of rows; longer means that the server is gone."""


class KeyStore:
    """Reads and writes of keys; every method is one statement."""

    def __init__(self) -> None:
        self._sql = load_queries("tollkeeper.access")

    async def version(self, connection: Connection) -> int:
        """Return the version of the keys; it moves with every change."""
        version: int = await connection.fetchval(
            self._sql["keys_version"], timeout=STATEMENT_TIMEOUT_S
        )
        return version

    async def valid_keys(
        self, connection: Connection, *, expired_after: datetime
    ) -> tuple[int, tuple[ApiKey, ...]]:
        """Return the keys neither revoked nor expired by then, and the version of this state."""
        rows = await connection.fetch(
            self._sql["valid_keys"], expired_after, timeout=STATEMENT_TIMEOUT_S
        )
        keys = tuple(
            ApiKey(
                key_id=row["key_id"],
                name=row["name"],
                token_hash=row["token_hash"],
                scopes=tuple(row["scopes"]),
                tenant_id=row["tenant_id"],
                created_at=row["created_at"],
                expires_at=row["expires_at"],
                replaced_by=row["replaced_by"],
            )
            for row in rows
            if row["key_id"] is not None
        )
        return rows[0]["version"], keys

    async def is_valid_key(
        self, connection: Connection, token_hash: bytes, *, now: datetime
    ) -> bool:
        """Whether a key exists, was not revoked and has not expired."""
        is_valid: bool = await connection.fetchval(
            self._sql["is_valid_key"], token_hash, now, timeout=STATEMENT_TIMEOUT_S
        )
        return is_valid

    async def act_as(self, connection: Connection, actor: str) -> None:
        """Say who makes the changes of this unit of work."""
        await connection.execute(self._sql["act_as"], actor, timeout=STATEMENT_TIMEOUT_S)

    async def insert_key(self, connection: Connection, key: ApiKey) -> None:
        """Keep a new key."""
        await connection.execute(
            self._sql["insert_key"],
            key.key_id,
            key.name,
            key.token_hash,
            list(key.scopes),
            key.tenant_id,
            key.created_at,
            key.expires_at,
            timeout=STATEMENT_TIMEOUT_S,
        )

    async def lock_key(
        self, connection: Connection, key_id: UUID, *, tenant_id: TenantId | None
    ) -> ApiKey | None:
        """Return a key, whatever its state, that nobody else can change now."""
        row = await connection.fetchrow(
            self._sql["lock_key"], key_id, tenant_id, timeout=STATEMENT_TIMEOUT_S
        )
        return None if row is None else _key_of(row)

    async def replace_key(
        self, connection: Connection, key_id: UUID, *, replaced_by: UUID, expires_at: datetime
    ) -> None:
        """End a key in favour of another."""
        await connection.execute(
            self._sql["replace_key"], key_id, replaced_by, expires_at, timeout=STATEMENT_TIMEOUT_S
        )

    async def revoke_key(self, connection: Connection, key_id: UUID, now: datetime) -> None:
        """End a key."""
        await connection.execute(self._sql["revoke_key"], key_id, now, timeout=STATEMENT_TIMEOUT_S)

    async def has_other_admin(self, connection: Connection, key_id: UUID, now: datetime) -> bool:
        """Whether a key other than this one can administer all keys."""
        has_other: bool = await connection.fetchval(
            self._sql["has_other_admin"], key_id, now, timeout=STATEMENT_TIMEOUT_S
        )
        return has_other

    async def list_keys(
        self, connection: Connection, *, after: UUID | None, tenant_id: TenantId | None, limit: int
    ) -> tuple[ApiKey, ...]:
        """Return a page of keys in the order of their ids."""
        rows = await connection.fetch(
            self._sql["list_keys"], after, tenant_id, limit, timeout=STATEMENT_TIMEOUT_S
        )
        return tuple(_key_of(row) for row in rows)

    async def list_events(
        self, connection: Connection, *, after: int, tenant_id: TenantId | None, limit: int
    ) -> tuple[KeyEvent, ...]:
        """Return a page of events in their order."""
        rows = await connection.fetch(
            self._sql["list_events"], after, tenant_id, limit, timeout=STATEMENT_TIMEOUT_S
        )
        return tuple(
            KeyEvent(
                sequence=row["sequence"],
                created_at=row["created_at"],
                kind=EventKind(row["kind"]),
                actor=row["actor"],
                key_id=row["key_id"],
                name=row["name"],
                scopes=tuple(row["scopes"]),
                tenant_id=row["tenant_id"],
                expires_at=row["expires_at"],
                replaced_by=row["replaced_by"],
            )
            for row in rows
        )

    async def record_uses(self, connection: Connection, uses: Mapping[UUID, datetime]) -> None:
        """Keep when keys were last used; what is kept never goes back."""
        await connection.execute(
            self._sql["record_uses"],
            list(uses),
            list(uses.values()),
            timeout=STATEMENT_TIMEOUT_S,
        )


def _key_of(row: Row) -> ApiKey:
    return ApiKey(
        key_id=row["key_id"],
        name=row["name"],
        token_hash=row["token_hash"],
        scopes=tuple(row["scopes"]),
        tenant_id=row["tenant_id"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
        replaced_by=row["replaced_by"],
        last_used_at=row["last_used_at"],
    )
