"""The HTTP face against callers that break rules, and callers that may not do everything.

Raw sockets: a client library would not send most of this. What the API itself promises and refuses
is in `test_credits_api.py`.
"""

import asyncio
import itertools
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import httpx
import pytest
from tests.acceptance.conftest import Service, running_service
from tests.conftest import Databases

from tollkeeper.access.model import hash_token
from tollkeeper.kernel.principal import Scope

URN = "urn:tollkeeper:problem:"
PATIENCE_S = 20.0
"""An answer that is not there by then hangs."""

BODY = b'{"amount":5}'
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def keys_dsn(databases: Databases) -> Iterator[str]:
    with databases.fresh("access") as dsn:
        yield dsn


@pytest.fixture(scope="module")
def service(
    databases: Databases, keys_dsn: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("face")
    with (
        databases.fresh("credits") as credits_dsn,
        running_service(credits_dsn, keys_dsn, folder) as service,
    ):
        yield service
        assert "web.request_failed" not in (folder / "service.log").read_text()


@pytest.fixture(scope="module")
def api(service: Service) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {service.api_key}"}
    with httpx.Client(base_url=service.url, headers=headers, timeout=PATIENCE_S) as client:
        yield client


@pytest.fixture
def account(api: httpx.Client) -> str:
    """An empty account of this test's own."""
    name = f"face-{next(_numbers)}"
    opened = api.post("/v1/accounts", json={"account_id": name, "tenant_id": "acme"})
    assert 201 == opened.status_code
    return name


def head(service: Service, line: str, *headers: str) -> bytes:
    """Return a request's head with an administrator's key."""
    lines = [f"{line} HTTP/1.1", "Host: ledger", f"Authorization: Bearer {service.api_key}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode("latin-1")


def topup(service: Service, account: str, *headers: str, key: str = "k") -> bytes:
    """Return the head of a topup that still needs to say how long its body is."""
    path = f"/v1/accounts/{account}/topups"
    return head(service, f"POST {path}", f"Idempotency-Key: {key}", *headers)


def connect(service: Service) -> socket.socket:
    port = int(service.url.rpartition(":")[2])
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)


def closing(service: Service, *pieces: bytes) -> bytes:
    """Send pieces, and return everything until the service closes the connection."""
    with connect(service) as connection:
        for piece in pieces:
            connection.sendall(piece)
        return b"".join(iter(lambda: connection.recv(65_536), b""))


def statuses(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)]


def version(api: httpx.Client, account: str) -> int:
    """Return how many transactions an account has."""
    found: int = api.get(f"/v1/accounts/{account}").json()["version"]
    return found


@pytest.mark.parametrize(
    "headers",
    [
        ["Content-Length: -5"],
        ["Content-Length: many"],
        ["Content-Length: 5"],  # the rest of the body is no request
        ["Content-Length: 12", "Content-Length: 3"],
        ["Content-Length: 12", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked"],  # but it is not
        ["Content-Length: 12", "X-Nul: a\0b"],
    ],
    ids=lambda headers: " + ".join(headers).replace("\0", "NUL"),
)
def test_a_request_that_could_be_read_in_two_ways_is_refused_and_closed(
    service: Service, api: httpx.Client, account: str, headers: list[str]
) -> None:
    """Whoever stands in front might read it in the other way: request smuggling."""
    answers = closing(service, topup(service, account, *headers) + BODY)

    assert [400] == statuses(answers)
    assert 0 == version(api, account)


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x02\x00\x01\x00", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"hello\r\n"]
)
def test_what_is_not_http_1_is_refused_and_closed(service: Service, garbage: bytes) -> None:
    assert [400] == statuses(closing(service, garbage))


@pytest.mark.parametrize(
    "start",
    [
        b"GET /health HTTP/1.1\r\nX: ",
        b"GET /",
        b"POST /v1/batch HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;",
    ],
    ids=["header", "path", "chunk extension"],
)
def test_a_head_without_end_is_refused_before_it_fills_the_memory(
    service: Service, start: bytes
) -> None:
    sent = 0
    with connect(service) as connection:
        connection.sendall(start)
        try:
            while sent < 50_000_000:
                sent += connection.send(b"a" * 10_000)
        except OSError:  # closed at the other end
            pass

    assert sent < 50_000_000


def test_pipelined_requests_are_answered_in_order(
    service: Service, api: httpx.Client, account: str
) -> None:
    length = f"Content-Length: {len(BODY)}"
    requests = [topup(service, account, length, key=f"k{n}") + BODY for n in range(20)]
    last = head(service, f"GET /v1/accounts/{account}", "Connection: close")

    answers = closing(service, b"".join(requests) + last)

    assert [201] * 20 + [200] == statuses(answers)
    assert [b"%d" % n for n in range(1, 21)] == re.findall(rb'"sequence":(\d+)', answers)
    assert 20 == version(api, account)


def test_a_body_may_come_byte_by_byte_and_in_chunks(service: Service, account: str) -> None:
    length, close = f"Content-Length: {len(BODY)}", "Connection: close"
    pieces = [BODY[n : n + 1] for n in range(len(BODY))]
    chunks = [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces] + [b"0\r\n\r\n"]
    chunked = topup(service, account, "Transfer-Encoding: chunked", close, key="chunks")

    assert [201] == statuses(closing(service, topup(service, account, length, close), *pieces))
    assert [201] == statuses(closing(service, chunked, *chunks))


def test_a_caller_that_waits_for_100_continue_gets_it(service: Service, account: str) -> None:
    request = topup(
        service,
        account,
        f"Content-Length: {len(BODY)}",
        "Expect: 100-continue",
        "Connection: close",
    )
    with connect(service) as connection:
        connection.sendall(request)
        asked = connection.recv(65_536)
        connection.sendall(BODY)
        answers = b"".join(iter(lambda: connection.recv(65_536), b""))

    assert [100] == statuses(asked)
    assert [201] == statuses(answers)


def test_a_caller_that_leaves_amid_its_body_has_done_nothing(
    service: Service, api: httpx.Client, account: str
) -> None:
    with connect(service) as connection:
        connection.sendall(topup(service, account, "Content-Length: 50") + BODY)

    assert 201 == api.post(
        f"/v1/accounts/{account}/topups", content=BODY, headers={"Idempotency-Key": "k"}
    ).status_code  # fmt: skip
    assert 1 == version(api, account)


def test_http_1_0_is_answered_and_closed(service: Service, account: str) -> None:
    request = head(service, f"GET /v1/accounts/{account}").replace(b"HTTP/1.1", b"HTTP/1.0")

    assert [200] == statuses(closing(service, request))


@pytest.mark.parametrize(
    "odd",
    [
        (200, "GET /v1/accounts/{encoded}", ""),
        (404, "GET /v1/accounts/a%2Fb", ""),
        (400, "GET /v1/accounts/a%00", ""),
        (400, "GET /v1/accounts/%ff%fe", ""),
        (400, "GET /v1/accounts/%zz", ""),
        (400, "GET /v1/accounts/" + "a" * 50_000, ""),
        (404, "GET /v1/accounts/%2e%2e/accounts/{account}", ""),
        (404, "GET /schema/../v1/accounts/{account}", ""),
        (400, "GET /v1/accounts/{account}/transactions?limit=%ff", ""),
        (204, "OPTIONS /v1/accounts", ""),
        (405, "DELETE /v1/accounts/{account}", ""),
        (405, "TRACE /v1/accounts/{account}", ""),
        (401, "GET /v1/accounts/{account}", "Authorization: Bearer another"),
        (200, "GET /v1/accounts/{account}", "Connection: Upgrade\r\nUpgrade: websocket"),
    ],
)
def test_odd_requests_get_a_plain_answer(
    service: Service, account: str, odd: tuple[int, str, str]
) -> None:
    status, line, header = odd
    encoded = "".join(f"%{ord(letter):02x}" for letter in account)
    line = line.format(account=account, encoded=encoded)
    request = head(service, line, *([header] if header else []))
    with connect(service) as connection:
        connection.sendall(request)
        answer = connection.recv(65_536)

    assert [status] == statuses(answer)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/health", 200), ("/health/ready", 200), ("/metrics", 200), ("/schema", 200),
        ("/schema/openapi.json", 200), ("/v1/accounts/{account}", 200),
        ("/v1/accounts/{account}/transactions?limit=5", 200), ("/v1/accounts/nobody", 404),
        ("/v1/accounts/{account}?x", 400), ("/v1/accounts", 405), ("/nowhere", 404),
    ],
)  # fmt: skip
def test_head_is_get_without_the_body(
    service: Service, account: str, path: str, status: int
) -> None:
    path = path.format(account=account)
    # The second request shows that nothing but the head of the first answer was sent.
    asked = head(service, f"HEAD {path}") + head(service, f"GET {path}", "Connection: close")
    answered, got = re.split(rb"(?<=\r\n\r\n)(?=HTTP/1\.1 )", closing(service, asked))

    assert [status] == statuses(answered) == statuses(got)
    assert answered.endswith(b"\r\n\r\n")
    assert shown(answered) - {"connection"} == shown(got) - {"connection"}
    assert b"application/" in answered or b"text/" in answered


def shown(answer: bytes) -> set[str]:
    """Return the names of an answer's headers."""
    names = answer.partition(b"\r\n\r\n")[0].splitlines()[1:]
    return {name.partition(b":")[0].decode().lower() for name in names}


def test_head_without_a_key_is_refused_without_a_body(service: Service) -> None:
    request = b"HEAD /v1/accounts/a HTTP/1.1\r\nHost: ledger\r\nConnection: close\r\n\r\n"
    answer = closing(service, request)

    assert [401] == statuses(answer)
    assert answer.endswith(b"\r\n\r\n")


def create_key(api: httpx.Client, *scopes: Scope, tenant_id: str | None) -> str:
    """Make a key; who made it accepts it at once."""
    body = {"name": "face", "scopes": scopes, "tenant_id": tenant_id}
    token: str = api.post("/v1/keys", json=body).json()["token"]
    return token


async def revoke_key(dsn: str, token: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(
            "UPDATE api_keys SET revoked_at = now() WHERE token_hash = $1", hash_token(token)
        )
    finally:
        await connection.close()


@contextmanager
def caller(api: httpx.Client, token: str) -> Iterator[httpx.Client]:
    """Yield a client with another key."""
    headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": "k"}
    with httpx.Client(base_url=api.base_url, headers=headers, timeout=PATIENCE_S) as client:
        yield client


def wait_while(client: httpx.Client, status: int) -> None:
    """Ask until the service answers otherwise."""
    deadline_s = time.monotonic() + PATIENCE_S
    while client.get("/v1/accounts/nobody").status_code == status:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_a_tenants_key_cannot_tell_anothers_account_from_none(
    api: httpx.Client, account: str
) -> None:
    api.post(f"/v1/accounts/{account}/topups", content=BODY, headers={"Idempotency-Key": "first"})
    scopes = (Scope.CREDITS_READ, Scope.CREDITS_WRITE)
    token = create_key(api, *scopes, tenant_id="other")

    with caller(api, token) as other:
        for method, path, body in (
            ("GET", "", None),
            ("GET", "/transactions", None),
            ("POST", "/topups", {"amount": 1}),
            ("POST", "/consumptions", {"amount": 1}),
        ):
            found, none = (
                other.request(method, f"/v1/accounts/{name}{path}", json=body)
                for name in (account, "nobody")
            )
            assert 404 == found.status_code
            differing = {
                **no_difference(account, none.json()),
                "request_id": none.json()["request_id"],
            }
            assert none.json() == {**found.json(), **differing}
        verified = other.post("/v1/audit/verify", json={"account_id": account})
        operation = {"op": "consume", "account_id": account, "idempotency_key": "k", "amount": 1}
        batch = other.post("/v1/batch", json={"operations": [operation]}).json()

    assert 404 == verified.status_code
    assert [404] == [result["status"] for result in batch["results"]]
    assert 1 == version(api, account)


def no_difference(account: str, none: dict[str, object]) -> dict[str, object]:
    """Return the members in which the names of the accounts stand, as they are for `nobody`."""
    assert account not in str(none)
    return {name: none[name] for name in ("detail", "account_id")}


def test_a_tenants_key_opens_and_sees_accounts_of_its_tenant_only(
    api: httpx.Client, account: str
) -> None:
    scopes = (Scope.CREDITS_READ, Scope.CREDITS_WRITE)
    token = create_key(api, *scopes, tenant_id="third")
    its_own = {"account_id": "third-1", "tenant_id": "third"}
    foreign = {"account_id": "third-2", "tenant_id": "acme"}

    with caller(api, token) as third:
        assert 201 == third.post("/v1/accounts", json=its_own).status_code
        assert 400 == third.post("/v1/accounts", json=foreign).status_code
        batch = {"operations": [{"op": "open", **its_own}, {"op": "open", **foreign}]}
        refused = third.post("/v1/batch", json=batch)
        assert 200 == third.get("/v1/accounts/third-1").status_code
        verified = third.post("/v1/audit/verify").json()

    assert 400 == refused.status_code
    assert "operations[1].tenant_id" == refused.json()["errors"][0]["field"]
    assert 1 == verified["accounts"]
    assert 404 == api.get("/v1/accounts/third-2").status_code


def test_a_key_does_what_its_scopes_say(api: httpx.Client, account: str) -> None:
    reads = create_key(api, Scope.CREDITS_READ, tenant_id=None)
    writes = create_key(api, Scope.CREDITS_WRITE, tenant_id=None)
    path = f"/v1/accounts/{account}"

    with caller(api, reads) as reader, caller(api, writes) as writer:
        assert 200 == reader.get(path).status_code
        refused = reader.post(f"{path}/topups", content=BODY)
        assert (403, "credits:write") == (refused.status_code, refused.json()["needed"])
        assert 'scope="credits:write"' in refused.headers["WWW-Authenticate"]
        assert 403 == reader.post("/v1/batch", json={"operations": []}).status_code
        assert 201 == writer.post(f"{path}/topups", content=BODY).status_code
        assert 403 == writer.get(path).status_code
        assert 403 == writer.post("/v1/audit/verify").status_code


def test_a_revoked_key_opens_nothing(api: httpx.Client, keys_dsn: str) -> None:
    token = create_key(api, Scope.CREDITS_READ, tenant_id=None)
    with caller(api, token) as client:
        asyncio.run(revoke_key(keys_dsn, token))
        wait_while(client, 404)
        answer = client.get("/v1/accounts/nobody")

    assert (401, URN + "key-unknown") == (answer.status_code, answer.json()["type"])


async def test_after_sigterm_all_that_was_booked_is_answered(
    databases: Databases, tmp_path: Path
) -> None:
    """Fifty callers spend without a pause while the service is told to leave."""
    answers: list[int] = []

    async def spend(client: httpx.AsyncClient, url: str, number: int) -> None:
        for turn in itertools.count():
            try:
                answer = await client.post(
                    f"{url}/v1/accounts/hot/consumptions",
                    content=b'{"amount":1}',
                    headers={"Idempotency-Key": f"{number}-{turn}"},
                )
            except httpx.TransportError:  # not accepted: the service is gone
                return
            answers.append(answer.status_code)

    with (
        databases.fresh("credits") as credits_dsn,
        databases.fresh("access") as access_dsn,
        running_service(credits_dsn, access_dsn, tmp_path) as service,
    ):
        headers = {"Authorization": f"Bearer {service.api_key}"}
        limits = httpx.Limits(max_connections=50)
        async with httpx.AsyncClient(headers=headers, timeout=PATIENCE_S, limits=limits) as client:
            await client.post(
                f"{service.url}/v1/accounts", json={"account_id": "hot", "tenant_id": "acme"}
            )
            await client.post(
                f"{service.url}/v1/accounts/hot/topups",
                json={"amount": 10**12},
                headers={"Idempotency-Key": "first"},
            )
            async with asyncio.timeout(2 * PATIENCE_S), asyncio.TaskGroup() as callers:
                for number in range(50):
                    callers.create_task(spend(client, service.url, number))
                while len(answers) < 500:
                    await asyncio.sleep(0.01)
                os.kill(service.process.pid, signal.SIGTERM)
        ended = await asyncio.to_thread(service.process.wait)
        connection = await asyncpg.connect(credits_dsn)
        booked = await connection.fetchval("SELECT version FROM accounts WHERE account_id = 'hot'")
        await connection.close()

    assert 0 == ended
    assert {201} == set(answers)
    assert 1 + len(answers) == booked
