"""Keys made, rotated, revoked and listed on PostgreSQL, with the role of a service."""

import asyncio
from collections import Counter
from datetime import timedelta
from uuid import UUID

import asyncpg
import pytest
from structlog.testing import capture_logs
from tests.clocks import SetClock

from tollkeeper.access.errors import (
    AdminKeyExists,
    KeyEnded,
    KeyInvalid,
    KeyNotFound,
    KeyRotated,
    LastAdminKey,
)
from tollkeeper.access.issuer import IssuedKey, KeyIssuer
from tollkeeper.access.model import (
    GRACE_S,
    MAX_GRACE_S,
    MAX_LIFE_S,
    ApiKey,
    EventKind,
    KeyEvent,
    KeyState,
)
from tollkeeper.database.driver import Connection
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.ids import TenantId, system_entropy, system_token
from tollkeeper.kernel.principal import Principal, Scope

READ = (Scope.CREDITS_READ,)
ADMIN = (Scope.ADMIN,)
ACME = TenantId("acme")
NOBODY = UUID("0190a5a0-0000-7000-8000-000000000000")


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def issuer(service_pool: Pool, clock: SetClock) -> KeyIssuer:
    return KeyIssuer(service_pool, clock=clock, entropy=system_entropy, tokens=system_token)


async def states(issuer: KeyIssuer, clock: SetClock) -> dict[UUID, KeyState]:
    return {key.key_id: key.state(clock.now()) for key in await issuer.list_keys(limit=100)}


async def stored(issuer: KeyIssuer, issued: IssuedKey) -> ApiKey:
    """Return a key as the database has it."""
    (found,) = [k for k in await issuer.list_keys(limit=9) if k.key_id == issued.key.key_id]
    return found


async def events(issuer: KeyIssuer, by: Principal | None = None) -> list[KeyEvent]:
    return list(await issuer.list_events(limit=100, by=by))


async def bound_admin(issuer: KeyIssuer, tenant: TenantId = ACME) -> IssuedKey:
    return await issuer.create_key(f"{tenant}'s admin", scopes=ADMIN, tenant_id=tenant)


# Rotation ----------------------------------------------------------------------------------------


async def test_rotation_makes_a_key_like_the_old_one_which_works_for_a_day(
    issuer: KeyIssuer, clock: SetClock
) -> None:
    old = await issuer.create_key("billing", scopes=READ, tenant_id=ACME)
    new = await issuer.rotate_key(old.key.key_id)

    assert (new.key.name, new.key.scopes, new.key.tenant_id, new.key.expires_at) == (
        "billing", old.key.scopes, ACME, None,
    )  # fmt: skip
    assert old.token != new.token
    found = await stored(issuer, old)
    assert new.key.key_id == found.replaced_by
    assert clock.now() + timedelta(seconds=GRACE_S) == found.expires_at
    assert KeyState.GRACE == found.state(clock.now())
    assert await issuer.is_valid(old.token)
    assert await issuer.is_valid(new.token)
    clock.advance(GRACE_S)
    assert not await issuer.is_valid(old.token)
    assert await issuer.is_valid(new.token)


async def test_no_grace_ends_the_old_key_at_once(issuer: KeyIssuer) -> None:
    old = await issuer.create_key("billing", scopes=READ)
    new = await issuer.rotate_key(old.key.key_id, grace_s=0)

    assert not await issuer.is_valid(old.token)
    assert await issuer.is_valid(new.token)


async def test_grace_never_outlives_the_keys_own_expiry(issuer: KeyIssuer, clock: SetClock) -> None:
    old = await issuer.create_key("billing", scopes=READ, expires_in_s=60)
    new = await issuer.rotate_key(old.key.key_id, grace_s=3_600)
    found = await stored(issuer, old)

    assert old.key.expires_at == found.expires_at == new.key.expires_at


async def test_the_new_key_may_be_given_a_life_of_its_own(
    issuer: KeyIssuer, clock: SetClock
) -> None:
    old = await issuer.create_key("billing", scopes=READ, expires_in_s=60)
    new = await issuer.rotate_key(old.key.key_id, expires_in_s=3_600)

    assert clock.now() + timedelta(hours=1) == new.key.expires_at


async def test_a_lost_answer_of_a_rotation_is_made_up_for(issuer: KeyIssuer) -> None:
    """Asking again is refused and names the successor, which can be rotated in turn."""
    old = await issuer.create_key("billing", scopes=READ)
    lost = await issuer.rotate_key(old.key.key_id)
    with pytest.raises(KeyRotated) as raised:
        await issuer.rotate_key(old.key.key_id)
    new = await issuer.rotate_key(raised.value.replaced_by, grace_s=0)

    assert lost.key.key_id == raised.value.replaced_by
    assert str(lost.key.key_id) in str(raised.value)
    assert [True, False, True] == [await issuer.is_valid(k.token) for k in (old, lost, new)]


async def test_what_has_ended_cannot_be_rotated(issuer: KeyIssuer, clock: SetClock) -> None:
    revoked = await issuer.create_key("revoked", scopes=READ)
    await issuer.revoke_key(revoked.key.key_id)
    expired = await issuer.create_key("expired", scopes=READ, expires_in_s=1)
    clock.advance(1)
    for key_id in (revoked.key.key_id, expired.key.key_id):
        with pytest.raises(KeyEnded, match="create a new one"):
            await issuer.rotate_key(key_id)
    with pytest.raises(KeyNotFound):
        await issuer.rotate_key(NOBODY)


async def test_two_rotations_at_once_make_one_key(issuer: KeyIssuer) -> None:
    old = await issuer.create_key("billing", scopes=READ)
    found = await asyncio.gather(
        *(issuer.rotate_key(old.key.key_id) for _ in range(4)), return_exceptions=True
    )

    assert Counter({KeyRotated: 3, IssuedKey: 1}) == Counter(map(type, found))
    assert 2 == len(await issuer.list_keys(limit=9))


@pytest.mark.parametrize("seconds", [-1, MAX_GRACE_S + 1])
async def test_a_grace_that_cannot_be_is_refused(issuer: KeyIssuer, seconds: int) -> None:
    old = await issuer.create_key("billing", scopes=READ)
    with pytest.raises(KeyInvalid, match="grace_s"):
        await issuer.rotate_key(old.key.key_id, grace_s=seconds)


@pytest.mark.parametrize("seconds", [0, MAX_LIFE_S + 1])
async def test_a_life_that_cannot_be_is_refused(issuer: KeyIssuer, seconds: int) -> None:
    with pytest.raises(KeyInvalid, match="expires_in_s"):
        await issuer.create_key("billing", scopes=READ, expires_in_s=seconds)


# Revocation --------------------------------------------------------------------------------------


async def test_revoking_twice_is_revoking_once(issuer: KeyIssuer, clock: SetClock) -> None:
    issued = await issuer.create_key("billing", scopes=READ)
    first = await issuer.revoke_key(issued.key.key_id)
    clock.advance(60)
    second = await issuer.revoke_key(issued.key.key_id)

    assert first.revoked_at == second.revoked_at
    assert not await issuer.is_valid(issued.token)
    assert 2 == len(await events(issuer))
    with pytest.raises(KeyNotFound, match=str(NOBODY)):
        await issuer.revoke_key(NOBODY)


async def test_the_last_key_for_everything_is_not_revoked_by_accident(
    issuer: KeyIssuer, clock: SetClock
) -> None:
    last = await issuer.create_key("last", scopes=ADMIN)
    graced = await issuer.create_key("in grace", scopes=ADMIN)
    successor = await issuer.rotate_key(graced.key.key_id)
    await issuer.revoke_key(successor.key.key_id)
    await issuer.create_key("expired", scopes=ADMIN, expires_in_s=1)
    clock.advance(1)
    await issuer.create_key("reader", scopes=READ)
    await bound_admin(issuer)
    with pytest.raises(LastAdminKey, match="force it"):
        await issuer.revoke_key(last.key.key_id)
    assert await issuer.is_valid(last.token)

    await issuer.revoke_key(last.key.key_id, is_forced=True)

    assert not await issuer.is_valid(last.token)


async def test_other_keys_are_revoked_without_a_question(
    issuer: KeyIssuer, clock: SetClock
) -> None:
    await issuer.create_key("last", scopes=ADMIN)
    expired = await issuer.create_key("expired", scopes=ADMIN, expires_in_s=1)
    clock.advance(1)
    bound = await bound_admin(issuer)
    for issued in (expired, bound):
        await issuer.revoke_key(issued.key.key_id)

    found = (await states(issuer, clock)).values()
    assert Counter({KeyState.REVOKED: 2, KeyState.ACTIVE: 1}) == Counter(found)


async def test_of_two_last_keys_one_stays_however_close_they_are_revoked(
    issuer: KeyIssuer, service_pool: Pool, clock: SetClock
) -> None:
    pair = [await issuer.create_key(name, scopes=ADMIN) for name in ("one", "two")]
    found = await asyncio.gather(
        *(issuer.revoke_key(issued.key.key_id) for issued in pair), return_exceptions=True
    )

    assert 1 == sum(isinstance(each, LastAdminKey) for each in found)
    assert {KeyState.ACTIVE, KeyState.REVOKED} == set((await states(issuer, clock)).values())


# The first key -----------------------------------------------------------------------------------


async def test_the_first_key_is_for_everything_and_made_once(issuer: KeyIssuer) -> None:
    first = await issuer.create_first_key("operator")
    assert ("admin",) == first.key.scopes
    assert first.key.tenant_id is None
    with pytest.raises(AdminKeyExists, match="force"):
        await issuer.create_first_key("operator")
    assert [first.key] == list(await issuer.list_keys(limit=9))

    forced = await issuer.create_first_key("operator", expires_in_s=60, is_forced=True)

    assert await issuer.is_valid(forced.token)


async def test_a_first_key_is_made_when_no_other_works(issuer: KeyIssuer, clock: SetClock) -> None:
    await issuer.create_key("reader", scopes=READ)
    await bound_admin(issuer)
    await issuer.create_key("expired", scopes=ADMIN, expires_in_s=1)
    clock.advance(1)

    assert await issuer.is_valid((await issuer.create_first_key("operator")).token)


async def test_first_keys_at_once_are_one(issuer: KeyIssuer) -> None:
    found = await asyncio.gather(
        *(issuer.create_first_key(f"{n}") for n in range(4)), return_exceptions=True
    )

    assert Counter({AdminKeyExists: 3, IssuedKey: 1}) == Counter(map(type, found))


# Tenants -----------------------------------------------------------------------------------------


async def test_a_bound_key_meets_its_own_tenants_keys_only(issuer: KeyIssuer) -> None:
    admin = await bound_admin(issuer)
    by = admin.key.principal()
    own = await issuer.create_key("own", scopes=READ, by=by)
    others = [
        await issuer.create_key("everybody's", scopes=READ),
        await issuer.create_key("another's", scopes=READ, tenant_id=TenantId("other")),
    ]

    assert ACME == own.key.tenant_id
    mine = {key.key_id for key in await issuer.list_keys(limit=9, by=by)}
    assert {admin.key.key_id, own.key.key_id} == mine
    assert {"acme"} == {event.tenant_id for event in await events(issuer, by)}
    for issued in others:
        with pytest.raises(KeyNotFound):
            await issuer.revoke_key(issued.key.key_id, by=by)
        with pytest.raises(KeyNotFound):
            await issuer.rotate_key(issued.key.key_id, by=by)
        assert await issuer.is_valid(issued.token)
    with pytest.raises(KeyInvalid, match="tenant_id"):
        await issuer.create_key("thief", scopes=ADMIN, tenant_id=TenantId("other"), by=by)
    assert ACME == (await issuer.rotate_key(own.key.key_id, by=by)).key.tenant_id


async def test_nobody_gets_by_rotation_what_they_do_not_have(issuer: KeyIssuer) -> None:
    reader = Principal(key_id=NOBODY, scopes=frozenset(READ), tenant_id=None)
    admin = await issuer.create_key("admin", scopes=ADMIN)
    with pytest.raises(KeyInvalid, match="admin"):
        await issuer.rotate_key(admin.key.key_id, by=reader)
    with pytest.raises(KeyInvalid, match="admin"):
        await issuer.create_key("mine", scopes=ADMIN, by=reader)

    assert [admin.key] == list(await issuer.list_keys(limit=9))


async def test_keys_and_events_page(issuer: KeyIssuer) -> None:
    made = [(await issuer.create_key(f"{n}", scopes=READ)).key.key_id for n in range(5)]
    first = await issuer.list_keys(limit=3)
    rest = await issuer.list_keys(after=first[-1].key_id, limit=3)
    early = await issuer.list_events(limit=3)
    late = await issuer.list_events(after=early[-1].sequence, limit=3)

    assert sorted(made) == [key.key_id for key in (*first, *rest)]
    assert made == [event.key_id for event in (*early, *late)]


# The trail ---------------------------------------------------------------------------------------


async def test_the_trail_says_who_did_what(
    issuer: KeyIssuer, connection: Connection, clock: SetClock
) -> None:
    admin = await issuer.create_key("admin", scopes=ADMIN)
    by = admin.key.principal()
    old = await issuer.create_key("old", scopes=READ, tenant_id=ACME, by=by)
    new = await issuer.rotate_key(old.key.key_id, by=by)
    await issuer.revoke_key(new.key.key_id, by=by)
    await connection.execute("UPDATE api_keys SET name = 'by hand' WHERE name = 'admin'")
    await connection.execute("DELETE FROM api_keys WHERE name = 'by hand'")

    me = str(admin.key.key_id)
    found = await events(issuer)
    assert [
        (EventKind.CREATED, "owner", admin.key.key_id, "admin", None),
        (EventKind.CREATED, me, old.key.key_id, "old", None),
        (EventKind.ROTATED, me, old.key.key_id, "old", new.key.key_id),
        (EventKind.CREATED, me, new.key.key_id, "old", None),
        (EventKind.REVOKED, me, new.key.key_id, "old", None),
        (EventKind.CHANGED, "owner", admin.key.key_id, "by hand", None),
        (EventKind.DELETED, "owner", admin.key.key_id, "by hand", None),
    ] == [(e.kind, e.actor, e.key_id, e.name, e.replaced_by) for e in found]
    assert found[2].expires_at == clock.now() + timedelta(seconds=GRACE_S)
    assert sorted(e.sequence for e in found) == [e.sequence for e in found]
    assert sorted(e.created_at for e in found) == [e.created_at for e in found]


async def test_what_is_taken_back_leaves_no_trail(issuer: KeyIssuer) -> None:
    last = await issuer.create_key("last", scopes=ADMIN)
    for refused in (issuer.revoke_key(last.key.key_id), issuer.create_first_key("second")):
        with pytest.raises((LastAdminKey, AdminKeyExists)):
            await refused

    assert [EventKind.CREATED] == [event.kind for event in await events(issuer)]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE api_key_events SET actor = 'nobody'",
        "DELETE FROM api_key_events",
        "TRUNCATE api_key_events",
    ],
)
async def test_not_even_the_owner_changes_the_trail(
    issuer: KeyIssuer, connection: Connection, statement: str
) -> None:
    await issuer.create_key("billing", scopes=READ)
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
        await connection.execute(statement)


@pytest.mark.parametrize(
    "change",
    [
        "revoked_at = NULL",
        "revoked_at = now() + interval '1 day'",
        "replaced_by = NULL",
        "replaced_by = gen_random_uuid()",
        "expires_at = NULL",
        "expires_at = expires_at + interval '1 second'",
    ],
)
async def test_no_key_is_given_a_longer_life(
    issuer: KeyIssuer, connection: Connection, service_pool: Pool, change: str
) -> None:
    issued = await issuer.create_key("billing", scopes=READ)
    await issuer.rotate_key(issued.key.key_id)
    await issuer.revoke_key(issued.key.key_id)
    statement = f"UPDATE api_keys SET {change} WHERE revoked_at IS NOT NULL"
    async with service_pool.connection() as servant:
        for role in (connection, servant):
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="longer life"):
                await role.execute(statement)


async def test_changes_are_logged_without_the_token(issuer: KeyIssuer) -> None:
    with capture_logs() as logs:
        old = await issuer.create_key("billing", scopes=READ, tenant_id=ACME)
        new = await issuer.rotate_key(old.key.key_id)
        await issuer.revoke_key(new.key.key_id)

    assert [
        ("access.key_created", str(old.key.key_id), "acme", "owner"),
        ("access.key_rotated", str(new.key.key_id), "acme", "owner"),
        ("access.key_revoked", str(new.key.key_id), "acme", "owner"),
    ] == [(e["event"], e["key_id"], e["tenant_id"], e["actor"]) for e in logs]
    for secret in (old.token, new.token, old.key.token_hash.hex()):
        assert secret not in str(logs)
