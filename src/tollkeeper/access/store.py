"""The rows of API keys: runs `queries.sql` on a given connection. Decides nothing."""

from tollkeeper.access.model import ApiKey
from tollkeeper.database.driver import Connection
from tollkeeper.database.queries import load_queries

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

    async def valid_keys(self, connection: Connection) -> tuple[int, tuple[ApiKey, ...]]:
        """Return every key that was not revoked, and the version at which this is so."""
        rows = await connection.fetch(self._sql["valid_keys"], timeout=STATEMENT_TIMEOUT_S)
        keys = tuple(
            ApiKey(
                key_id=row["key_id"],
                name=row["name"],
                token_hash=row["token_hash"],
                scopes=tuple(row["scopes"]),
                tenant_id=row["tenant_id"],
                created_at=row["created_at"],
            )
            for row in rows
            if row["key_id"] is not None
        )
        return rows[0]["version"], keys

    async def is_valid_key(self, connection: Connection, token_hash: bytes) -> bool:
        """Whether a key exists and was not revoked."""
        is_valid: bool = await connection.fetchval(
            self._sql["is_valid_key"], token_hash, timeout=STATEMENT_TIMEOUT_S
        )
        return is_valid

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
            timeout=STATEMENT_TIMEOUT_S,
        )
