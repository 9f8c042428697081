import httpx
import pytest

from tollkeeper.web.auth import bearer_key, is_open
from tollkeeper.web.errors import NotAuthenticated


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
