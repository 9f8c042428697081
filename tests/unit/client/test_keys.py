"""The typed calls for keys: what may be sent again, and what a lost answer says."""

import pytest
from tests.unit.client.network import answer, peer
from tests.unit.client.test_credits import StillClock

from tollkeeper.client.errors import CallFailed, CallRefused, ServiceUnreachable, TokenLost
from tollkeeper.client.keys import KeysClient
from tollkeeper.kernel.backoff import Backoff

ID = "019b7c35-0000-7000-8000-000000000001"
KEY = {
    "key_id": ID, "name": "billing", "scopes": ["credits:read"], "tenant_id": None,
    "state": "active", "created_at": "2026-01-02T00:00:00.000000Z", "expires_at": None,
    "revoked_at": None, "replaced_by": None, "last_used_at": None,
}  # fmt: skip
ISSUED = answer(201, {**KEY, "token": "tk_live_secret"})
BUSY = answer(429, {"type": "urn:tollkeeper:problem:too-many-failures"}, [("Retry-After", "1")])
AWAY = answer(503, {"type": "urn:tollkeeper:problem:database-unavailable", "title": "away"})


def client_of(url: str) -> KeysClient:
    return KeysClient(
        url, "key", clock=StillClock(), backoff=Backoff(first_ms=1, ceiling_ms=1, retries=3)
    )


async def test_a_key_is_made_and_its_token_not_shown_by_accident() -> None:
    async with peer([ISSUED]) as service, client_of(service.url) as client:
        issued = await client.create_key(
            "billing", ["credits:read"], tenant_id="acme", expires_in_s=60
        )

    assert (ID, "tk_live_secret") == (issued.key_id, issued.token)
    assert "secret" not in repr(issued)
    assert service.requests[0].endswith(
        b'{"name":"billing","scopes":["credits:read"],"tenant_id":"acme","expires_in_s":60}'
    )


async def test_a_lost_answer_is_not_asked_for_again() -> None:
    """A second key would be no better: nobody knows whether there is a first."""
    async with peer([b""], cuts=[0]) as service, client_of(service.url) as client:
        with pytest.raises(TokenLost, match="keys list"):
            await client.create_key("billing", ["credits:read"])

    assert 1 == len(service.requests)


async def test_a_rotation_is_sent_again_only_when_it_had_no_effect() -> None:
    async with peer([BUSY, ISSUED]) as service, client_of(service.url) as client:
        await client.rotate_key(ID, grace_s=0)
    assert [b'{"grace_s":0}'] * 2 == [each[-13:] for each in service.requests]

    async with peer([AWAY, ISSUED]) as service, client_of(service.url) as client:
        with pytest.raises(CallFailed, match="away"):
            await client.rotate_key(ID)
    assert 1 == len(service.requests)


async def test_a_service_that_is_not_there_is_tried_again() -> None:
    clock = StillClock()
    backoff = Backoff(first_ms=1, ceiling_ms=1, retries=3)
    async with KeysClient("http://127.0.0.1:1", "key", clock=clock, backoff=backoff) as client:
        with pytest.raises(ServiceUnreachable):
            await client.create_key("billing", ["credits:read"])

    assert 3 == len(clock.slept)


async def test_revoking_is_repeated_until_it_is_answered() -> None:
    revoked = answer(200, {**KEY, "state": "revoked"})
    async with peer([b"", AWAY, revoked], cuts=[0]) as service, client_of(service.url) as client:
        key = await client.revoke_key(ID, force=True)

    assert "revoked" == key.state
    assert 3 == len(service.requests)


async def test_a_refusal_is_raised_as_one() -> None:
    refused = answer(409, {"type": "urn:tollkeeper:problem:last-admin-key", "detail": "the last"})
    async with peer([refused]) as service, client_of(service.url) as client:
        with pytest.raises(CallRefused, match="the last"):
            await client.revoke_key(ID)


async def test_pages_are_asked_for_by_cursor() -> None:
    event = {**KEY, "sequence": 4, "kind": "created", "actor": "owner"}
    pages = [
        answer(200, {"items": [KEY], "next": ID}),
        answer(200, {"items": [event], "next": None}),
    ]
    async with peer(pages) as service, client_of(service.url) as client:
        keys = await client.keys(limit=1)
        events = await client.key_events(after="3")

    assert (ID, "created") == (keys.next, events.items[0].kind)
    assert service.requests[0].startswith(b"GET /v1/keys?limit=1 ")
    assert service.requests[1].startswith(b"GET /v1/keys/events?limit=1000&after=3 ")
