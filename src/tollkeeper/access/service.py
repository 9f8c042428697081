"""Who holds which key: all valid keys in memory, so that checking one costs no round trip.

`AccessService` checks keys and needs a pool that may read (role `tollkeeper_access`); `KeyMaker`
makes them and needs the owner's. A background task asks every two seconds whether any key changed,
and reads them again only then. When the database is away the last known keys go on working; `age_s`
says since when. So a revoked key works for two seconds more, or until the database is back.
"""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType

import structlog

from tollkeeper.access.errors import KeysUnavailable, KeyUnknown
from tollkeeper.access.model import ApiKey, Environment, compose_token, hash_token, is_token
from tollkeeper.access.store import KeyStore
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.clock import Clock
from tollkeeper.kernel.errors import ConfigurationError
from tollkeeper.kernel.ids import (
    EntropySource,
    TenantId,
    TokenSource,
    compose_id,
    milliseconds_since_epoch,
)
from tollkeeper.kernel.principal import Principal, Scope

REFRESH_INTERVAL_S = 2.0
"""How long a change of a key may take to be seen by every service."""

DEVELOPMENT_KEY_NAME = "development"

_log = structlog.get_logger(__name__)


class AccessService:
    """Knows every valid key of one access database."""

    def __init__(self, pool: Pool, *, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock
        self._store = KeyStore()
        self._principals: Mapping[bytes, Principal] | None = None
        self._version = -1
        self._confirmed_s: float | None = None
        self._is_stale = False
        self._turn = asyncio.Lock()
        self._refreshing: asyncio.Task[None] | None = None

    def principal_of(self, token: str) -> Principal:
        """Return whom a key stands for; costs a hash and one look into a dictionary.

        Raises:
            KeyUnknown: no such key, or it was revoked.
            KeysUnavailable: the keys could not be read even once.
        """
        if self._principals is None:
            raise KeysUnavailable
        # The hash of a secret is looked up, not the secret: the time it takes tells nothing of use.
        principal = self._principals.get(hash_token(token))
        if principal is None:
            raise KeyUnknown
        return principal

    @property
    def age_s(self) -> float:
        """Seconds since the keys were last known to be current; infinite before the first time."""
        if self._confirmed_s is None:
            return float("inf")
        return self._clock.monotonic_s() - self._confirmed_s

    @property
    def is_loaded(self) -> bool:
        """Whether the keys were read at least once."""
        return self._principals is not None

    def start(self) -> None:
        """Read the keys as soon as the database answers, and keep them current from now on."""
        self._refreshing = asyncio.create_task(self._keep_current(), name="access.refresh")

    async def close(self) -> None:
        """Stop keeping the keys current; the last known ones stay."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._refreshing
            self._refreshing = None

    async def refresh(self) -> None:
        """Read the keys again if any changed.

        Raises:
            DatabaseError: the last known keys stay in force.
        """
        async with self._turn, self._pool.connection() as connection:
            started_s = self._clock.monotonic_s()
            if self._version != await self._store.version(connection):
                self._version, keys = await self._store.valid_keys(connection)
                self._principals = MappingProxyType(
                    {key.token_hash: key.principal() for key in keys}
                )
                _log.info("access.keys_read", keys=len(keys), version=self._version)
            self._confirmed_s = started_s

    async def _keep_current(self) -> None:
        while True:
            await self._try_refresh()
            await self._clock.sleep(REFRESH_INTERVAL_S)

    async def _try_refresh(self) -> None:
        """Refresh; say once when it begins to fail, and once when it works again."""
        try:
            await self.refresh()
        except Exception as error:  # noqa: BLE001 - the edge of a background task
            if not self._is_stale:
                self._is_stale = True
                _log.warning("access.keys_stale", error=repr(error), age_s=self.age_s)
            return
        if self._is_stale:
            self._is_stale = False
            _log.info("access.keys_current", version=self._version)


class KeyMaker:
    """Makes keys of one access database, as its owner."""

    def __init__(
        self, pool: Pool, *, clock: Clock, entropy: EntropySource, tokens: TokenSource
    ) -> None:
        self._pool = pool
        self._clock = clock
        self._entropy = entropy
        self._tokens = tokens
        self._store = KeyStore()

    async def create_key(
        self,
        name: str,
        *,
        scopes: Collection[Scope],
        tenant_id: TenantId | None = None,
        environment: Environment = "live",
    ) -> tuple[ApiKey, str]:
        """Make a key and return it with the text for its holder, which is kept nowhere else.

        Services accept it from their next refresh on.

        Raises:
            KeyInvalid: a name, scope or tenant that cannot be.
            DatabaseError: the database is away.
        """
        now = self._clock.now()
        entropy = self._entropy()
        token = compose_token(environment, self._tokens())
        key = ApiKey(
            key_id=compose_id(milliseconds_since_epoch(now), entropy, entropy & 0xFF),
            name=name,
            token_hash=hash_token(token),
            scopes=tuple(sorted(scope.value for scope in scopes)),
            tenant_id=tenant_id,
            created_at=now,
        )
        async with self._pool.connection() as connection:
            await self._store.insert_key(connection, key)
        _log.info(
            "access.key_created", key_id=str(key.key_id), name=name, tenant_id=tenant_id,
            scopes=key.scopes,
        )  # fmt: skip
        return key, token

    async def ensure_development_key(self, path: Path) -> str:
        """Return the key in `path` if it is still valid; otherwise make one and put it there.

        Raises:
            ConfigurationError: the file cannot be read or written.
            DatabaseError: the database is away.
        """
        token = await asyncio.to_thread(_read_token, path)
        if token is not None and await self._is_valid(token):
            return token
        _, token = await self.create_key(
            DEVELOPMENT_KEY_NAME, scopes=(Scope.ADMIN,), environment="dev"
        )
        await asyncio.to_thread(_write_secret, path, token)
        return token

    async def _is_valid(self, token: str) -> bool:
        async with self._pool.connection() as connection:
            return await self._store.is_valid_key(connection, hash_token(token))


def _read_token(path: Path) -> str | None:
    """Return the key in a file, whose mode is put right; None if there is no whole key in it."""
    try:
        token = path.read_bytes().decode("ascii", errors="replace").strip()
        path.chmod(0o600)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(problem=f"{path} cannot be read: {error.strerror}.") from error
    return token if is_token(token) else None


def _write_secret(path: Path, token: str) -> None:
    """Put a file in place whole or not at all, for its owner's eyes only."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(f"{token}\n")
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigurationError(problem=f"{path} cannot be written: {error.strerror}.") from error
