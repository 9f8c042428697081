"""Makes, rotates, revokes and lists keys, for somebody who may.

`by` is the principal who asks; None is the owner of the database, who may everything. A principal
that is bound to a tenant meets the keys of that tenant only: others do not exist for it. Whether
one may administer keys at all (the scope `admin`) is judged before (`api.py`).

Every method is one unit of work. The schema records who did what; see `record_api_key_event`.
Invariant: a token leaves this module once, in the result of the call that made it.
"""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

import structlog

from tollkeeper.access.errors import (
    AdminKeyExists,
    KeyEnded,
    KeyInvalid,
    KeyNotFound,
    KeyRotated,
    LastAdminKey,
)
from tollkeeper.access.model import (
    GRACE_S,
    MAX_GRACE_S,
    MAX_LIFE_S,
    OWNER,
    ApiKey,
    Environment,
    KeyEvent,
    KeyState,
    check_scopes,
    compose_token,
    hash_token,
    tenant_for,
)
from tollkeeper.access.store import KeyStore
from tollkeeper.database.driver import Connection
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.clock import Clock
from tollkeeper.kernel.ids import (
    EntropySource,
    TenantId,
    TokenSource,
    compose_id,
    milliseconds_since_epoch,
)
from tollkeeper.kernel.principal import Principal, Scope

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedKey:
    """A key that was just made, with the text for its holder, which is kept nowhere else."""

    key: ApiKey
    token: str

    def __repr__(self) -> str:
        return f"IssuedKey(key={self.key!r})"  # a traceback or a log line must not show it


class KeyIssuer:
    """The keys of one access database, for those who administer them."""

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
        scopes: Collection[str],
        tenant_id: TenantId | None = None,
        expires_in_s: int | None = None,
        environment: Environment = "live",
        by: Principal | None = None,
    ) -> IssuedKey:
        """Make a key. Services accept it from their next refresh on.

        Raises:
            KeyInvalid: a name, scope, tenant or expiry that cannot be, or is not for `by` to give.
            DatabaseError: the database is away.
        """
        tenant_id = tenant_for(by, tenant_id)
        check_scopes(by, scopes)
        issued = self._compose(
            name,
            scopes,
            tenant_id=tenant_id,
            expires_at=self._expiry(expires_in_s),
            environment=environment,
        )
        async with self._unit_of_work(by) as connection:
            await self._store.insert_key(connection, issued.key)
        _log_change("access.key_created", issued.key, by)
        return issued

    async def create_first_key(
        self, name: str, *, expires_in_s: int | None = None, is_forced: bool = False
    ) -> IssuedKey:
        """Make a key with the scope `admin` for all tenants, if nobody has a usable one.

        Two at once make one: the version's row puts them in order, and the second finds the first.

        Raises:
            AdminKeyExists: somebody has one; `is_forced` makes another all the same.
            KeyInvalid: a name or expiry that cannot be.
            DatabaseError: the database is away.
        """
        issued = self._compose(
            name, (Scope.ADMIN,), tenant_id=None, expires_at=self._expiry(expires_in_s)
        )
        key = issued.key
        async with self._unit_of_work(None) as connection:
            await self._store.insert_key(connection, key)
            if not is_forced and await self._store.has_other_admin(
                connection, key.key_id, key.created_at
            ):
                raise AdminKeyExists
        _log_change("access.key_created", key, None)
        return issued

    async def rotate_key(
        self,
        key_id: UUID,
        *,
        grace_s: int = GRACE_S,
        expires_in_s: int | None = None,
        by: Principal | None = None,
    ) -> IssuedKey:
        """Make a key in the place of another, which goes on working for `grace_s` at most.

        The new one has the name, scopes and tenant of the old one, and its expiry unless another
        is asked for. The grace never outlives the old key's own expiry.

        Raises:
            KeyNotFound: there is none, or it is another tenant's.
            KeyEnded: it was revoked or has expired.
            KeyRotated: it was rotated before.
            KeyInvalid: a grace or an expiry that cannot be, or scopes that `by` does not have.
            DatabaseError: the database is away.
        """
        if not 0 <= grace_s <= MAX_GRACE_S:
            raise KeyInvalid(field="grace_s", fault=f"must be 0 to {MAX_GRACE_S}")
        expires_at = self._expiry(expires_in_s)
        async with self._unit_of_work(by) as connection:
            old = await self._locked(connection, key_id, by)
            now = self._clock.now()
            if old.replaced_by is not None:
                raise KeyRotated(key_id=key_id, replaced_by=old.replaced_by)
            if old.state(now) is not KeyState.ACTIVE:
                raise KeyEnded(key_id=key_id)
            check_scopes(by, old.scopes)
            issued = self._compose(
                old.name,
                old.scopes,
                tenant_id=old.tenant_id,
                expires_at=expires_at or old.expires_at,
            )
            end = now + timedelta(seconds=grace_s)
            if old.expires_at is not None:
                end = min(end, old.expires_at)
            await self._store.replace_key(
                connection, key_id, replaced_by=issued.key.key_id, expires_at=end
            )
            await self._store.insert_key(connection, issued.key)
        _log_change("access.key_rotated", issued.key, by, replaces=str(key_id))
        return issued

    async def revoke_key(
        self, key_id: UUID, *, is_forced: bool = False, by: Principal | None = None
    ) -> ApiKey:
        """End a key and return it; one that was revoked before is returned as it is.

        Raises:
            KeyNotFound: there is none, or it is another tenant's.
            LastAdminKey: no other key could administer all keys; `is_forced` revokes it anyway.
            DatabaseError: the database is away.
        """
        async with self._unit_of_work(by) as connection:
            key = await self._locked(connection, key_id, by)
            if key.revoked_at is not None:
                return key
            now = self._clock.now()
            revoked = replace(key, revoked_at=now)
            # Done first and looked at then: by now no other revocation is under way, because
            # the version's row is ours. Two keys cannot each count on the other.
            await self._store.revoke_key(connection, key_id, now)
            if (
                not is_forced
                and _administers_all(key, now)
                and not await self._store.has_other_admin(connection, key_id, now)
            ):
                raise LastAdminKey(key_id=key_id)
        _log_change("access.key_revoked", revoked, by)
        return revoked

    async def list_keys(
        self, *, after: UUID | None = None, limit: int, by: Principal | None = None
    ) -> tuple[ApiKey, ...]:
        """Return up to `limit` keys with ids above `after`, revoked and expired ones too."""
        async with self._pool.connection() as connection:
            return await self._store.list_keys(
                connection, after=after, tenant_id=_tenant_of(by), limit=limit
            )

    async def list_events(
        self, *, after: int = 0, limit: int, by: Principal | None = None
    ) -> tuple[KeyEvent, ...]:
        """Return up to `limit` events behind the number `after`, in their order."""
        async with self._pool.connection() as connection:
            return await self._store.list_events(
                connection, after=after, tenant_id=_tenant_of(by), limit=limit
            )

    async def is_valid(self, token: str) -> bool:
        """Whether a key works now."""
        async with self._pool.connection() as connection:
            return await self._store.is_valid_key(
                connection, hash_token(token), now=self._clock.now()
            )

    @asynccontextmanager
    async def _unit_of_work(self, by: Principal | None) -> AsyncIterator[Connection]:
        async with self._pool.connection() as connection, connection.transaction():
            await self._store.act_as(connection, _actor_of(by))
            yield connection

    async def _locked(self, connection: Connection, key_id: UUID, by: Principal | None) -> ApiKey:
        key = await self._store.lock_key(connection, key_id, tenant_id=_tenant_of(by))
        if key is None:
            raise KeyNotFound(key_id=key_id)
        return key

    def _compose(
        self,
        name: str,
        scopes: Collection[str],
        *,
        tenant_id: TenantId | None,
        expires_at: datetime | None,
        environment: Environment = "live",
    ) -> IssuedKey:
        now, entropy = self._clock.now(), self._entropy()
        token = compose_token(environment, self._tokens())
        key = ApiKey(
            key_id=compose_id(milliseconds_since_epoch(now), entropy, entropy & 0xFF),
            name=name,
            token_hash=hash_token(token),
            scopes=tuple(sorted({str(scope) for scope in scopes})),
            tenant_id=tenant_id,
            created_at=now,
            expires_at=expires_at,
        )
        return IssuedKey(key=key, token=token)

    def _expiry(self, expires_in_s: int | None) -> datetime | None:
        if expires_in_s is None:
            return None
        if not 1 <= expires_in_s <= MAX_LIFE_S:
            raise KeyInvalid(field="expires_in_s", fault=f"must be 1 to {MAX_LIFE_S}")
        return self._clock.now() + timedelta(seconds=expires_in_s)


def _administers_all(key: ApiKey, now: datetime) -> bool:
    is_admin = key.tenant_id is None and Scope.ADMIN in key.scopes
    return is_admin and key.state(now) is KeyState.ACTIVE


def _tenant_of(by: Principal | None) -> TenantId | None:
    return None if by is None else by.tenant_id


def _actor_of(by: Principal | None) -> str:
    return OWNER if by is None else str(by.key_id)


def _log_change(event: str, key: ApiKey, by: Principal | None, **more: str) -> None:
    _log.info(
        event, key_id=str(key.key_id), name=key.name, scopes=key.scopes, tenant_id=key.tenant_id,
        actor=_actor_of(by), **more,
    )  # fmt: skip
