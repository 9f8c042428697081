import hashlib
import re
from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import msgspec
import pytest
from litestar import Litestar, post
from litestar.openapi.spec import Operation

from tollkeeper.kernel.principal import Scope
from tollkeeper.web.openapi import Answer, Body, RouteFacts, documented, problem_kinds
from tollkeeper.web.problem import SHARED_PROBLEMS, URN
from tollkeeper.web.reference import reference


class Greeting(msgspec.Struct):
    """Words <script>alert(1)</script> to say."""

    words: str


FACTS = RouteFacts(
    summary="Greet",
    tag="talk",
    answers={200: Answer(description="greeted", view=Greeting)},
    body=Body(struct=Greeting, example={"words": "hello"}),
    scope=Scope.CREDITS_WRITE,
)


@post("/greetings", operation_class=documented(FACTS, SHARED_PROBLEMS))
async def greet() -> None:
    """Say `hello`."""


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    application = Litestar(
        [greet],
        openapi_config=reference(
            title="Talk",
            version="1.2.3",
            description="Words.",
            tags={"talk": "What is said."},
            handlers=[greet],
            problems=SHARED_PROBLEMS,
        ),
    )
    transport = httpx.ASGITransport(app=application)  # type: ignore[arg-type]  # other ASGI types
    async with httpx.AsyncClient(transport=transport, base_url="http://docs.test:81") as client:
        yield client


async def test_page_shows_the_operation_and_its_example(client: httpx.AsyncClient) -> None:
    answer = await client.get("/schema")

    assert "text/html; charset=utf-8" == answer.headers["content-type"]
    assert "Say <code>hello</code>." in answer.text
    assert "curl http://docs.test:81/greetings" in answer.text
    assert "<code>credits:write</code>" in answer.text


async def test_what_the_document_says_is_text_not_markup(client: httpx.AsyncClient) -> None:
    page = (await client.get("/schema")).text

    assert "<script" not in page
    assert "&lt;script&gt;" in page


async def test_policy_allows_the_style_sheet_and_nothing_else(client: httpx.AsyncClient) -> None:
    answer = await client.get("/schema")

    (style,) = re.findall(r"<style>(.*?)</style>", answer.text, re.DOTALL)
    digest = b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = answer.headers["content-security-policy"]
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:;")


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("ledger.example:5004", "ledger.example:5004"),
        ("[::1]:5004", "[::1]:5004"),
        ("$(reboot)", "docs.test:81"),
        ("a.test;reboot", "docs.test:81"),
        ("", "docs.test:81"),
    ],
)
async def test_only_a_host_is_repeated(client: httpx.AsyncClient, host: str, shown: str) -> None:
    page = (await client.get("/schema", headers={"Host": host})).text

    assert f"curl http://{shown}/greetings" in page
    assert "reboot" not in page


async def test_examples_go_back_through_the_proxy_that_ends_tls(client: httpx.AsyncClient) -> None:
    answer = await client.get("/schema", headers={"X-Forwarded-Proto": "https"})

    assert "curl https://docs.test:81/greetings" in answer.text


async def test_document_says_what_goes_without_saying(client: httpx.AsyncClient) -> None:
    document = (await client.get("/schema/openapi.json")).json()

    operation = document["paths"]["/greetings"]["post"]
    assert "greet" == operation["operationId"]
    assert ["200", "400", "401", "403", "413", "429", "503"] == sorted(operation["responses"])
    assert f"`{URN}body-too-large`" in operation["responses"]["413"]["description"]
    assert [{"key": ["credits:write"]}] == operation["security"]
    assert {"Retry-After"} == operation["responses"]["503"]["headers"].keys()


def test_open_route_without_body_has_no_unsaid_problems() -> None:
    facts = replace(FACTS, body=None, scope=None)

    assert () == problem_kinds(facts, SHARED_PROBLEMS)
    assert issubclass(documented(facts, SHARED_PROBLEMS), Operation)
