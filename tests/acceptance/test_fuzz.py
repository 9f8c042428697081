"""Whatever is sent: a 4xx problem document at most, never a 500, and the service goes on serving.

Bodies and headers that nobody would send on purpose, over raw sockets where a client library would
not send them. What has a meaning and is refused for it is in `test_http_face.py`.
"""

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.acceptance.conftest import Service, running_service
from tests.conftest import Databases
from tests.hostile import assert_is_answered, assert_is_problem, hostile_bodies

PATIENCE_S = 20.0
EXAMPLES = 200
SOME_ID = "01978a3c-5f00-7abc-8def-0123456789ab"
PATHS = [
    "/v1/accounts",
    "/v1/accounts/ann/topups",
    "/v1/accounts/ann/consumptions",
    "/v1/accounts/ann/holds",
    f"/v1/holds/{SOME_ID}/capture",
    f"/v1/holds/{SOME_ID}/release",
    f"/v1/holds/{SOME_ID}/extend",
    f"/v1/transactions/{SOME_ID}/refunds",
    "/v1/batch",
    "/v1/audit/verify",
    "/v1/keys",
    f"/v1/keys/{SOME_ID}/rotate",
]
MEMBERS = [
    "amount", "description", "metadata", "payment", "account_id", "tenant_id", "operations", "op",
    "idempotency_key", "expires_in_s", "allowance", "final", "up_to", "after", "name", "scopes",
    "__proto__", "", "\0",
]  # fmt: skip


@pytest.fixture(scope="module")
def service(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("fuzz")
    with (
        databases.fresh("credits") as credits_dsn,
        databases.fresh("access") as access_dsn,
        running_service(credits_dsn, access_dsn, folder) as service,
    ):
        yield service
    log = Path(folder / "service.log").read_text()
    assert "web.request_failed" not in log
    assert "Traceback" not in log


@pytest.fixture(scope="module")
def api(service: Service) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {service.api_key}", "Idempotency-Key": "fuzz"}
    with httpx.Client(base_url=service.url, headers=headers, timeout=PATIENCE_S) as client:
        opened = client.post("/v1/accounts", json={"account_id": "ann", "tenant_id": "acme"})
        assert 201 == opened.status_code
        yield client
        assert 200 == client.get("/v1/accounts/ann").status_code


@given(path=st.sampled_from(PATHS), body=hostile_bodies(MEMBERS, "operations"))
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
def test_any_body_is_taken_or_a_problem(api: httpx.Client, path: str, body: bytes) -> None:
    assert_is_answered(api.post(path, content=body))


visible = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), max_size=60)
header_values = st.one_of(
    visible.map(lambda text: text.encode("latin-1")),
    st.binary(max_size=40),
    st.sampled_from([b"", b" ", b"\t", b"a" * 300, b"\x00", b"\x7f", b"a\rb", b"a\nX: b", b"\xf0"]),
)
header_names = st.sampled_from([
    b"Idempotency-Key", b"Content-Type", b"Content-Encoding", b"Content-Length", b"Accept",
    b"Transfer-Encoding", b"Host", b"Connection", b"Expect", b"Range", b"If-Match", b"Cookie",
    b"Origin", b"Upgrade", b"X-Forwarded-For", b"X-Request-Id", b"TE", b"Trailer", b"X",
]) | st.binary(min_size=1, max_size=10)  # fmt: skip

methods = st.sampled_from([b"POST", b"GET", b"PUT", b"BREW", b"post", b"\xff"])


@given(
    headers=st.lists(st.tuples(header_names, header_values), max_size=5),
    line=st.tuples(
        methods,
        st.sampled_from([path.encode() for path in PATHS] + [b"/v1/accounts/ann", b"/schema/no"]),
    ),
)
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
def test_any_head_is_taken_or_a_problem(
    service: Service,
    api: httpx.Client,
    headers: list[tuple[bytes, bytes]],
    line: tuple[bytes, bytes],
) -> None:
    body = b'{"amount":1}'
    lines = [
        b" ".join([*line, b"HTTP/1.1"]),
        b"Host: ledger",
        b"Authorization: Bearer " + service.api_key.encode(),
        *(name + b": " + value for name, value in headers),
        b"Content-Length: %d" % len(body),
    ]
    answer = exchanged(service, b"\r\n".join([*lines, b"", b""]) + body)

    for status, content_type, said in answers_in(answer):
        if status >= 300:
            assert_is_problem(status, content_type, said)
    assert 200 == api.get("/health").status_code


def exchanged(service: Service, request: bytes) -> bytes:
    """Send a request, and that there is none after it; return all that is answered."""
    port = int(service.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        try:
            return b"".join(iter(lambda: connection.recv(65_536), b""))
        except ConnectionResetError:  # closed with bytes of ours unread
            return b""


def answers_in(text: bytes) -> Iterator[tuple[int, str, bytes]]:
    """Take apart what a connection answered: status, content type, body."""
    while text:
        head, _, text = text.partition(b"\r\n\r\n")
        found = re.match(rb"HTTP/1\.1 (\d{3}) ", head)
        assert found is not None, head
        kind = re.search(rb"(?i)content-type: ([^\r]*)", head)
        length = re.search(rb"(?i)content-length: (\d+)", head)
        size = int(length[1]) if length else 0
        yield int(found[1]), kind[1].decode() if kind else "", text[:size]
        text = text[size:]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000, 431),
        (b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"X%d: a\r\n" % n for n in range(20_000)), 431),
        (b"POST /v1/batch HTTP/1.1\r\nHost: a\r\nContent-Length: 1e3\r\n\r\n", 400),
        (b"POST /v1/batch HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /v1/batch HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", 400),
        (b"POST /v1/batch HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"\0\0\0\0\r\n\r\n", 400),
    ],
)  # fmt: skip
def test_what_is_no_request_is_a_problem_too(service: Service, head: bytes, status: int) -> None:
    port = int(service.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
        connection.sendall(head)
        answer = connection.recv(65_536)
    ((found, content_type, body),) = answers_in(answer)

    assert status == found
    assert_is_problem(found, content_type, body)


def test_a_crafted_batch_does_not_hold_up_others(api: httpx.Client, service: Service) -> None:
    """To search an item's text for card numbers takes a millisecond; others ask meanwhile."""
    item = {
        "op": "consume", "account_id": "ann", "idempotency_key": "k", "amount": 1,
        "description": "4 " * 250,
    }  # fmt: skip
    body = json.dumps({"operations": [item] * 1_000}).encode()
    port = int(service.url.rpartition(":")[2])
    request = (
        b"POST /v1/batch HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n"
        b"Authorization: Bearer %s\r\n\r\n" % (len(body), service.api_key.encode())
    )
    answered_meanwhile, first = 0, b""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
        connection.sendall(request + body)
        connection.setblocking(False)
        while not first:
            try:
                first = connection.recv(1)
            except BlockingIOError:
                assert 200 == api.get("/health").status_code
                answered_meanwhile += 1

    assert b"H" == first
    assert answered_meanwhile > 5


@pytest.mark.parametrize("path", ["/schema/nope", "/schema/nope/nope", "/nope", "/v1/nope"])
def test_a_path_that_leads_nowhere_is_a_problem(api: httpx.Client, path: str) -> None:
    answer = api.get(path)

    assert 404 == answer.status_code
    assert_is_answered(answer)
