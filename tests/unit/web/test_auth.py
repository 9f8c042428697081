from collections import Counter
from uuid import UUID

import httpx
import pytest
from litestar.types import Receive, Scope, Send
from structlog.testing import capture_logs
from tests.clocks import SetClock
from tests.unit.web.conftest import PROBLEMS, KeyUnknown, principal_of

from tollkeeper.kernel.errors import TollkeeperError
from tollkeeper.kernel.ids import TenantId
from tollkeeper.web.attempts import FAILURES_BURST
from tollkeeper.web.auth import Authentication, AuthenticationTally, bearer_key, is_open
from tollkeeper.web.errors import NotAuthenticated, TooManyFailures
from tollkeeper.web.problem import ProblemKind

URN = "urn:tollkeeper:problem:"


class Away(TollkeeperError):
    """Stands for keys that cannot be read."""


class Expired(TollkeeperError):
    """Stands for a key that was good once."""

    key_id = UUID(int=7)
    tenant_id = TenantId("acme")


class Guarded:
    """An application behind `Authentication`, asked as from any address."""

    def __init__(self) -> None:
        self.clock = SetClock()
        self.tally = AuthenticationTally()
        problems = {
            **PROBLEMS,
            Away: ProblemKind(503, URN + "away", "Away"),
            Expired: ProblemKind(401, URN + "expired", "Expired"),
        }

        def judge(token: str) -> object:
            failures = {"away": Away, "expired": Expired}
            if token in failures:
                raise failures[token]
            return principal_of(token)

        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        self._app = Authentication(
            application,
            principal_of=judge,  # type: ignore[arg-type]  # returns what `principal_of` does
            problems=problems,
            clock=self.clock,
            tally=self.tally,
        )

    async def ask(self, token: str | None, address: str | None = "10.0.0.1") -> tuple[int, str]:
        """Return the status, and the `Retry-After` of the answer."""
        sent: list[dict[str, object]] = []
        headers = [] if token is None else [(b"authorization", f"Bearer {token}".encode())]
        client = None if address is None else (address, 1)
        scope = {"type": "http", "path": "/x", "method": "GET", "headers": headers}

        async def send(message: dict[str, object]) -> None:
            sent.append(message)

        await self._app({**scope, "client": client}, None, send)  # type: ignore[arg-type]
        found = dict(sent[0]["headers"])  # type: ignore[call-overload]
        return int(str(sent[0]["status"])), found.get(b"retry-after", b"").decode()


@pytest.fixture
def guarded() -> Guarded:
    return Guarded()


async def test_failures_are_limited_and_a_valid_key_is_answered_all_the_same(
    guarded: Guarded,
) -> None:
    answers = [await guarded.ask(token) for token in ["wrong", None] * (FAILURES_BURST // 2)]
    assert {(401, "")} == set(answers)

    assert (429, "1") == await guarded.ask("wrong")
    assert (429, "1") == await guarded.ask(None)
    assert (204, "") == await guarded.ask("good")
    assert (401, "") == await guarded.ask("wrong", "10.0.0.2")
    guarded.clock.advance(1.0)
    assert (401, "") == await guarded.ask("wrong")
    assert (429, "1") == await guarded.ask("wrong")


async def test_keys_that_cannot_be_read_are_nobodys_failure(guarded: Guarded) -> None:
    answers = {await guarded.ask("away") for _ in range(FAILURES_BURST + 1)}

    assert {(503, "1")} == answers
    assert (401, "") == await guarded.ask("wrong")


async def test_callers_without_an_address_share_one(guarded: Guarded) -> None:
    answers = [await guarded.ask("wrong", None) for _ in range(FAILURES_BURST + 1)]

    assert [(401, "")] * FAILURES_BURST + [(429, "1")] == answers


async def test_each_authentication_is_counted_once(guarded: Guarded) -> None:
    for token in ["good", "good", None, "away", *["wrong"] * (FAILURES_BURST + 4)]:
        await guarded.ask(token)

    assert 2 == guarded.tally.accepted
    assert (
        Counter({NotAuthenticated: 1, Away: 1, KeyUnknown: FAILURES_BURST - 1, TooManyFailures: 5})
        == guarded.tally.refused
    )


async def test_a_refusal_is_logged_without_the_key_until_the_limit(guarded: Guarded) -> None:
    with capture_logs() as logs:
        for token in ["expired", *["tk_live_secret"] * (2 * FAILURES_BURST)]:
            await guarded.ask(token)

    assert FAILURES_BURST == len(logs)
    assert {"access.authentication_refused"} == {entry["event"] for entry in logs}
    assert (str(UUID(int=7)), "acme", "10.0.0.1") == (
        logs[0]["key_id"], logs[0]["tenant_id"], logs[0]["address"],
    )  # fmt: skip
    assert "secret" not in str(logs)


async def test_request_without_key_is_401(client: httpx.AsyncClient) -> None:
    del client.headers["authorization"]
    answer = await client.post("/payments", content=b"{}")

    assert 401 == answer.status_code
    assert "application/problem+json" == answer.headers["content-type"]
    assert "Bearer" == answer.headers["www-authenticate"]
    assert {
        "type": "urn:tollkeeper:problem:not-authenticated",
        "title": "Not authenticated",
        "status": 401,
        "detail": "send Authorization: Bearer <API key>",
    } == answer.json()


async def test_unknown_key_is_401(client: httpx.AsyncClient) -> None:
    answer = await client.post("/payments", headers={"Authorization": "Bearer wrong"})

    assert 401 == answer.status_code
    assert 'Bearer error="invalid_token"' == answer.headers["www-authenticate"]
    assert "urn:tollkeeper:problem:key-unknown" == answer.json()["type"]


async def test_missing_route_without_key_is_401_too(client: httpx.AsyncClient) -> None:
    del client.headers["authorization"]

    assert 401 == (await client.get("/nowhere")).status_code


async def test_missing_scope_is_403_and_named(client: httpx.AsyncClient) -> None:
    answer = await client.post("/payments", headers={"Authorization": "Bearer reader"})

    assert 403 == answer.status_code
    assert "credits:write" == answer.json()["needed"]
    assert "credits:write" in answer.json()["detail"]
    assert 'scope="credits:write"' in answer.headers["www-authenticate"]


async def test_principal_reaches_the_route(client: httpx.AsyncClient) -> None:
    answer = await client.post(
        "/payments", content=b'{"amount": 1}', headers={"Idempotency-Key": "k"}
    )

    assert {"amount": 1, "key": "k", "tenant": "acme"} == answer.json()


async def test_health_answers_without_a_key(client: httpx.AsyncClient) -> None:
    del client.headers["authorization"]

    assert 200 == (await client.get("/health")).status_code


@pytest.mark.parametrize(
    "path", ["/health", "/health/ready", "/metrics", "/schema", "/schema/openapi.json"]
)
def test_open_paths(path: str) -> None:
    assert is_open(path)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "",
        "/healthy",
        "/health/",
        "/health/x",
        "/metricsx",
        "/schemas",
        "/v1/batch",
        "//health",
    ],
)
def test_every_other_path_is_closed(path: str) -> None:
    assert not is_open(path)


@pytest.mark.parametrize(
    "path", ["/schema/../payments", "/schema/%2e%2e/payments", "/schema//../payments"]
)
async def test_open_prefix_leads_to_no_other_route(client: httpx.AsyncClient, path: str) -> None:
    del client.headers["authorization"]
    url = httpx.URL("http://test/x").copy_with(raw_path=path.encode())

    assert (await client.post(url)).status_code in {401, 404}


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (b"Bearer abc", "abc"),
        (b"bearer abc", "abc"),
        (b"BEARER  abc ", "abc"),
        (b"Bearer \xff", "\xff"),
    ],
)
def test_key_is_read_from_the_header(value: bytes, key: str) -> None:
    assert key == bearer_key([(b"host", b"x"), (b"authorization", value)])


@pytest.mark.parametrize(
    "values", [[], [b""], [b"Bearer"], [b"Bearer "], [b"Basic abc"], [b"Bearer a", b"Bearer b"]]
)
def test_header_that_is_no_bearer_key_is_refused(values: list[bytes]) -> None:
    with pytest.raises(NotAuthenticated):
        bearer_key([(b"authorization", value) for value in values])
