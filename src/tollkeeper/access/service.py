"""Who holds which key: all valid keys in memory, so that checking one costs no round trip.

It needs a pool that acts as `tollkeeper_access`. A background task asks every two seconds whether
any key changed, and reads them again only then. When the database is away the last known keys go
on working until they expire; `age_s` says since when. So a revoked key works for two seconds more,
or until the database is back. Expiry needs no refresh: each check looks at the clock.

When a key was last used is noted in memory, to the two seconds, and written now and then: a
request pays an assignment for it. What was noted within `USES_INTERVAL_S` of a crash is lost.
"""

import asyncio
import contextlib
import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from types import MappingProxyType
from uuid import UUID

import structlog

from tollkeeper.access.errors import KeyExpired, KeysUnavailable, KeyUnknown
from tollkeeper.access.model import ApiKey, hash_token
from tollkeeper.access.store import KeyStore
from tollkeeper.database.errors import SchemaMissing
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.clock import Clock
from tollkeeper.kernel.principal import Principal

REFRESH_INTERVAL_S = 2.0
"""How long a change of a key may take to be seen by every service."""

USES_INTERVAL_S = 30.0
"""How often the last uses are written."""

CLOSE_TIMEOUT_S = 2.0
"""The last uses may take so long to be written when the process leaves."""

EXPIRED_KEPT = timedelta(days=7)
"""So long the holder of an expired key is told that it expired; then it is unknown."""

NOT_READ = "they are being read"
NOT_REACHED = "their database cannot be reached"
NOT_MIGRATED = "their database is not migrated: run `tollkeeper migrate up`"
"""Why the keys are not in memory; callers are told, so nothing of the database's words."""

_log = structlog.get_logger(__name__)


class _HeldKey:
    """A key in memory; mutable, because a use must cost no more than an assignment."""

    __slots__ = ("expires_at", "is_used", "key_id", "principal")

    def __init__(self, key: ApiKey) -> None:
        self.principal = key.principal()
        self.key_id = key.key_id
        self.expires_at = key.expires_at
        self.is_used = False


class AccessService:
    """Knows every valid key of one access database."""

    def __init__(self, pool: Pool, *, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock
        self._store = KeyStore()
        self._held: Mapping[bytes, _HeldKey] | None = None
        self._version = -1
        self._read_at: datetime | None = None
        self._confirmed_s: float | None = None
        self._is_stale = False
        self._fault = NOT_READ
        self._uses: dict[UUID, datetime] = {}
        self._recorded_s = clock.monotonic_s()
        self._turn = asyncio.Lock()
        self._refreshing: asyncio.Task[None] | None = None

    def principal_of(self, token: str) -> Principal:
        """Return whom a key stands for; costs a hash and one look into a dictionary.

        Raises:
            KeyUnknown: no such key, or it was revoked.
            KeyExpired: its time is over.
            KeysUnavailable: the keys could not be read even once.
        """
        if self._held is None:
            raise KeysUnavailable(reason=self._fault)
        # The hash of a secret is looked up, not the secret: see `hash_token` on timing.
        held = self._held.get(hash_token(token))
        if held is None:
            raise KeyUnknown
        if held.expires_at is not None and held.expires_at <= self._clock.now():
            raise KeyExpired(
                key_id=held.key_id,
                tenant_id=held.principal.tenant_id,
                expired_at=held.expires_at,
            )
        held.is_used = True
        return held.principal

    @property
    def age_s(self) -> float:
        """Seconds since the keys were last known to be current; infinite before the first time."""
        if self._confirmed_s is None:
            return float("inf")
        return self._clock.monotonic_s() - self._confirmed_s

    @property
    def is_loaded(self) -> bool:
        """Whether the keys were read at least once."""
        return self._held is not None

    @property
    def fault(self) -> str | None:
        """Why no key can be checked; None once the keys were read."""
        return None if self.is_loaded else self._fault

    @property
    def held(self) -> int:
        """How many keys are in memory."""
        return 0 if self._held is None else len(self._held)

    def start(self) -> None:
        """Read the keys as soon as the database answers, and keep them current from now on."""
        self._refreshing = asyncio.create_task(self._keep_current(), name="access.refresh")

    async def close(self) -> None:
        """Stop keeping the keys current and write the last uses; the last known keys stay."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._refreshing
            self._refreshing = None
            await self._try_record_uses()

    async def refresh(self) -> None:
        """Read the keys again if any changed.

        Raises:
            DatabaseError: the last known keys stay in force.
        """
        async with self._turn, self._pool.connection() as connection:
            started_s, now = self._clock.monotonic_s(), self._clock.now()
            # A clock that was set back may have made us leave keys out that are good now.
            is_set_back = self._read_at is not None and now < self._read_at
            if is_set_back or self._version != await self._store.version(connection):
                version, keys = await self._store.valid_keys(
                    connection, expired_after=now - EXPIRED_KEPT
                )
                self._note_uses()
                self._held = MappingProxyType({key.token_hash: _HeldKey(key) for key in keys})
                self._version = version
                self._read_at = now
                _log.info("access.keys_read", keys=len(keys), version=version)
            self._confirmed_s = started_s

    async def see_change(self) -> None:
        """Refresh now, because a key was changed here; what fails is made up for soon."""
        await self._try_refresh()

    async def record_uses(self) -> None:
        """Write when the keys were last used.

        Raises:
            DatabaseError: they are kept for the next time.
        """
        self._note_uses()
        uses, self._uses = self._uses, {}
        self._recorded_s = self._clock.monotonic_s()
        if not uses:
            return
        try:
            async with self._pool.connection() as connection:
                await self._store.record_uses(connection, uses)
        except BaseException:
            self._uses = {**uses, **self._uses}
            raise

    async def _keep_current(self) -> None:
        while True:
            await self._try_refresh()
            self._note_uses()
            if self._clock.monotonic_s() - self._recorded_s >= USES_INTERVAL_S:
                await self._try_record_uses()
            await self._clock.sleep(REFRESH_INTERVAL_S)

    def _note_uses(self) -> None:
        """Collect which keys were used since the last time."""
        now = self._clock.now()
        for held in (self._held or {}).values():
            if held.is_used:
                held.is_used = False
                self._uses[held.key_id] = now

    async def _try_refresh(self) -> None:
        """Refresh; say once when it begins to fail, and once when it works again."""
        try:
            await self.refresh()
        except Exception as error:  # noqa: BLE001 - the edge of a background task
            self._fault = NOT_MIGRATED if isinstance(error, SchemaMissing) else NOT_REACHED
            if not self._is_stale:
                self._is_stale = True
                age_s = None if math.isinf(self.age_s) else round(self.age_s, 3)
                _log.warning("access.keys_stale", error=repr(error), age_s=age_s)
            return
        if self._is_stale:
            self._is_stale = False
            _log.info("access.keys_current", version=self._version)

    async def _try_record_uses(self) -> None:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self.record_uses()
        except Exception as error:  # noqa: BLE001 - the edge of a background task
            if not self._is_stale:
                _log.warning("access.uses_not_recorded", error=repr(error), keys=len(self._uses))
