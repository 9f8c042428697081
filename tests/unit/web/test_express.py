"""What the express layer answers itself, what it passes on, and what a fault becomes."""

import asyncio

import msgspec
from litestar.types import Message, Receive, Scope, Send
from structlog.testing import capture_logs

from tollkeeper.web.answer import JsonAnswer
from tollkeeper.web.express import Express
from tollkeeper.web.problem import SHARED_PROBLEMS


async def say_name(scope: Scope, receive: Receive, name: str) -> JsonAnswer:
    return JsonAnswer(name.encode(), 201)


async def break_down(scope: Scope, receive: Receive, name: str) -> JsonAnswer:
    raise RuntimeError("the secret reason")


async def pass_on(scope: Scope, receive: Receive, send: Send) -> None:
    await JsonAnswer(b"passed on", 200)(scope, receive, send)


def answer_to(method: str, path: str) -> tuple[int, bytes]:
    """Return status and body of the layer's answer."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> object:
        return {"type": "http.request", "body": b"", "more_body": False}

    express = Express(
        pass_on, prefix="/a/", parameter="name", routes={"said": say_name, "broken": break_down},
        problems=SHARED_PROBLEMS, paths={"/alone": say_name, "/a/alone": say_name},
    )  # fmt: skip
    scope = {"type": "http", "method": method, "path": path, "headers": []}
    asyncio.run(express(scope, receive, send))  # type: ignore[arg-type]  # the keys it reads
    return sent[0]["status"], sent[1]["body"]  # type: ignore[typeddict-item]


def test_its_routes_are_answered_with_the_name_in_their_path() -> None:
    assert (201, b"ann") == answer_to("POST", "/a/ann/said")


def test_its_paths_are_answered_without_a_name() -> None:
    assert (201, b"") == answer_to("POST", "/alone")
    assert (201, b"") == answer_to("POST", "/a/alone")


def test_everything_else_is_passed_on() -> None:
    for method, path in [
        ("GET", "/a/ann/said"), ("POST", "/a/ann/said/"), ("POST", "/a/ann"), ("POST", "/a/"),
        ("POST", "/b/ann/said"), ("POST", "/a/ann/x/said"), ("POST", "/"),
        ("GET", "/alone"), ("POST", "/alone/"),
    ]:  # fmt: skip
        assert (200, b"passed on") == answer_to(method, path), (method, path)


def test_a_fault_is_logged_and_answered_without_its_reason() -> None:
    with capture_logs() as logs:
        status, body = answer_to("POST", "/a/ann/broken")

    assert 500 == status
    assert b"secret" not in body
    assert 500 == msgspec.json.decode(body)["status"]
    assert ["web.request_failed"] == [entry["event"] for entry in logs]
