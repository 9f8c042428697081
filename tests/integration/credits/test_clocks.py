"""Clocks set forward and back: the database's, the service's host's, and the client's.

Decisions follow the database's clock alone (tests/database_clock.py sets it). No unit is lost, none
is charged twice, and who is refused learns why.
"""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from tests.clocks import SetClock
from tests.database_clock import make_settable, set_ahead
from tests.ledger import Ledger, consume, held_by, running_ledger, words, words_of
from tests.stage import as_another_request

from tollkeeper.app import offer_credits
from tollkeeper.config import Settings
from tollkeeper.credits import requests
from tollkeeper.credits.errors import KeyExpired
from tollkeeper.credits.model import HoldState, Kind, Posted
from tollkeeper.database.driver import Connection
from tollkeeper.frame import Readiness, build_app
from tollkeeper.kernel.ids import AccountId, mint_key, system_entropy
from tollkeeper.wiring import credits_runtime, ensure_development_key

ANN = AccountId("ann")
YEAR = timedelta(days=366)
FAR = [-3 * YEAR, -timedelta(days=40), timedelta(days=40), 3 * YEAR]


@pytest.fixture
async def ledger(credits_dsn: str, owner: Connection) -> AsyncIterator[Ledger]:
    """A ledger whose database's clock can be set."""
    await make_settable(owner)
    async with running_ledger(credits_dsn) as ledger:
        await ledger.open_with(100, "ann")
        yield ledger


@pytest.mark.parametrize("far", FAR, ids=str)
async def test_a_clock_set_far_away_and_back_loses_nothing_and_charges_nothing_twice(
    ledger: Ledger, owner: Connection, far: timedelta
) -> None:
    """Rows before the oldest partition and behind the newest have one made; keys are found."""
    here = consume("ann", 10, "here")
    (first,) = await ledger.execute(here)
    await set_ahead(owner, far)
    there = consume("ann", 20, "there")
    second, held = await ledger.execute(there, requests.reserve(words("ann"), amount=5))
    await set_ahead(owner, timedelta(0))
    captured, again, third = await ledger.execute(
        requests.capture(words("ann"), hold_id=held_by(held)),
        as_another_request(here),
        consume("ann", 1),
    )
    history = await ledger.service.history(ANN, None, after=0, limit=10)

    # A hold that was made in the past has expired since; one from a time to come has not.
    is_over = far < timedelta(0)
    assert ["posted"] * 4 == words_of([first, second, held, third])
    assert ["hold_closed" if is_over else "posted"] == words_of([captured])
    assert isinstance(first, Posted)
    assert Posted(first.transaction, replayed=True) == again
    assert list(range(1, len(history) + 1)) == [each.sequence for each in history]
    assert len({each.transaction_id for each in history}) == len(history)
    assert (69 if is_over else 64) == await ledger.balance("ann")
    for each in history:
        assert each == await ledger.service.transaction(each.transaction_id, None)
    await ledger.assert_sound()


@pytest.mark.parametrize("back", [timedelta(hours=2), timedelta(hours=26), YEAR], ids=str)
async def test_a_key_is_known_however_far_the_clock_is_set_back(
    ledger: Ledger, owner: Connection, back: timedelta
) -> None:
    operation = consume("ann", 30, "once")
    await ledger.execute(operation)
    await set_ahead(owner, -back)
    results = await ledger.execute(as_another_request(operation), consume("ann", 31, "once"))

    assert ["replayed", "key_reused"] == words_of(results)
    assert 70 == await ledger.balance("ann")


async def test_a_retry_after_the_clock_was_set_forward_is_refused_and_not_charged(
    ledger: Ledger, owner: Connection
) -> None:
    operation = consume("ann", 30, mint_key(datetime.now(UTC), system_entropy()))
    await ledger.execute(operation)
    await set_ahead(owner, timedelta(days=2))
    (refused,) = await ledger.execute(as_another_request(operation))

    assert isinstance(refused, KeyExpired)
    assert "look at the account's history before using a new key" in str(refused)
    assert 70 == await ledger.balance("ann")


@pytest.mark.parametrize("far", FAR, ids=str)
async def test_a_client_whose_clock_is_wrong_is_told_so_and_not_charged(
    ledger: Ledger, far: timedelta
) -> None:
    key = mint_key(datetime.now(UTC) + far, system_entropy())
    (refused,) = await ledger.execute(consume("ann", 30, key))

    assert isinstance(refused, KeyExpired)
    assert round(-far.total_seconds() / 3_600) == round(refused.age_s / 3_600)
    assert 100 == await ledger.balance("ann")


async def test_an_expiry_that_was_booked_stays_and_one_that_was_not_may_be_undone_by_the_clock(
    ledger: Ledger, owner: Connection
) -> None:
    booked, open_still = await ledger.execute(
        *(requests.reserve(words("ann"), amount=40, expires_in_s=s) for s in (3_600, 7_200))
    )
    await set_ahead(owner, timedelta(minutes=90))
    (spent,) = await ledger.execute(consume("ann", 60))
    await set_ahead(owner, -timedelta(minutes=90))
    late, captured = await ledger.execute(
        requests.capture(words("ann"), hold_id=held_by(booked)),
        requests.capture(words("ann"), hold_id=held_by(open_still)),
    )
    history = await ledger.service.history(ANN, None, after=0, limit=10)

    assert ["posted", "hold_closed", "posted"] == words_of([spent, late, captured])
    assert [Kind.EXPIRE] == [each.kind for each in history if each.reference_id == held_by(booked)]
    assert HoldState.EXPIRED is (await ledger.service.hold(held_by(booked), None)).state
    assert 0 == await ledger.balance("ann")
    await ledger.assert_sound()


@pytest.mark.parametrize("far", [-3 * YEAR, 3 * YEAR], ids=str)
async def test_a_service_whose_host_is_in_another_year_decides_as_the_database_does(
    credits_dsn: str, access_dsn: str, tmp_path_factory: pytest.TempPathFactory, far: timedelta
) -> None:
    token = await ensure_development_key(access_dsn, tmp_path_factory.mktemp("host") / "dev.key")
    settings = Settings(credits_dsn=credits_dsn, access_dsn=access_dsn)
    async with credits_runtime(settings) as runtime:
        astray = replace(runtime, clock=SetClock(datetime.now(UTC) + far))
        application = build_app(astray, Readiness(astray, "credits"), offer_credits(astray))
        transport = httpx.ASGITransport(app=application)  # type: ignore[arg-type]  # other ASGI types
        async with httpx.AsyncClient(transport=transport, base_url="http://ledger") as client:
            client.headers["Authorization"] = f"Bearer {token}"
            while 200 != (await client.get("/health/ready")).status_code:
                pass
            answers = await moved_money(client)
            account = (await client.get("/v1/accounts/ann")).json()
            verified = (await client.post("/v1/audit/verify")).json()

    assert [201] * len(answers) == [answer.status_code for answer in answers]
    for answer in answers[1:]:
        age = datetime.now(UTC) - datetime.fromisoformat(answer.json()["created_at"])
        assert abs(age) < timedelta(hours=1)
    assert (75, 0) == (account["balance"], account["reserved"])
    assert [] == verified["faults"]


async def moved_money(client: httpx.AsyncClient) -> list[httpx.Response]:
    """Open, top up 100, consume 20, hold 10, capture 10, refund 5."""

    async def post(path: str, body: dict[str, object], key: str) -> httpx.Response:
        return await client.post(path, json=body, headers={"Idempotency-Key": key})

    opened = await post("/v1/accounts", {"account_id": "ann", "tenant_id": "acme"}, "open")
    added = await post("/v1/accounts/ann/topups", {"amount": 100}, "topup")
    spent = await post("/v1/accounts/ann/consumptions", {"amount": 20}, "consume")
    held = await post("/v1/accounts/ann/holds", {"amount": 10, "expires_in_s": 60}, "hold")
    captured = await post(f"/v1/holds/{held.json()['hold_id']}/capture", {}, "capture")
    refunded = await post(
        f"/v1/transactions/{captured.json()['transaction_id']}/refunds", {"amount": 5}, "refund"
    )
    return [opened, added, spent, held, captured, refunded]
