"""A small real application behind all layers of `web`, called in process or over a socket."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Annotated
from uuid import UUID

import httpx
import msgspec
import pytest
import uvicorn
from litestar import Litestar, Request, get, post
from litestar.datastructures import State
from litestar.params import FromPath, FromQuery, JSONBody
from litestar.types import ASGIApp

from tollkeeper.database.errors import DatabaseUnavailable
from tollkeeper.kernel import principal as who
from tollkeeper.kernel.clock import SystemClock
from tollkeeper.kernel.errors import TollkeeperError
from tollkeeper.kernel.ids import TenantId
from tollkeeper.kernel.principal import Principal
from tollkeeper.web.auth import Authentication, AuthenticationTally, authorize
from tollkeeper.web.body import decode_body, read_body
from tollkeeper.web.idempotency import idempotency_key
from tollkeeper.web.middleware import BodyLimit
from tollkeeper.web.problem import SHARED_PROBLEMS, URN, ProblemKind, exception_handlers

BODY_LIMIT_BYTES = 1_000

AnyRequest = Request[None, None, State]


@dataclass(eq=False, kw_only=True)
class KeyUnknown(TollkeeperError):
    """Stands for what the key store raises."""

    def message(self) -> str:
        return "this key is not known"


@dataclass(eq=False, kw_only=True)
class PurseEmpty(TollkeeperError):
    """A refusal with facts, one of which is not for callers."""

    available: int
    required: int
    account_id: UUID | None = None
    status: str = "shadows a standard member"
    internals: object = field(default_factory=object)

    def message(self) -> str:
        return f"{self.required} needed, {self.available} there"


@dataclass(eq=False, kw_only=True)
class QueueFull(TollkeeperError):
    """A refusal that says when to come back."""

    retry_after_s: float

    def message(self) -> str:
        return "too many requests are waiting"


@dataclass(eq=False, kw_only=True)
class Unmapped(TollkeeperError):
    """An error that nobody put into the table."""

    secret: str = "do not show"


PROBLEMS = {
    **SHARED_PROBLEMS,
    KeyUnknown: ProblemKind(401, URN + "key-unknown", "Key unknown"),
    PurseEmpty: ProblemKind(402, URN + "purse-empty", "Purse empty"),
    QueueFull: ProblemKind(503, URN + "queue-full", "Queue full"),
}


class Payment(msgspec.Struct, forbid_unknown_fields=True):
    amount: Annotated[int, msgspec.Meta(gt=0)]
    note: str = ""


PAYMENT = msgspec.json.Decoder(Payment)


@post("/payments")
async def pay(request: AnyRequest) -> dict[str, str | int]:
    principal = authorize(request.scope, who.Scope.CREDITS_WRITE)
    key = idempotency_key(request.scope["headers"])
    payment = decode_body(PAYMENT, await read_body(request.receive))
    return {"amount": payment.amount, "key": key, "tenant": principal.tenant_id or ""}


@post("/echo", status_code=200)
async def echo(request: AnyRequest) -> int:
    return len(await read_body(request.receive))


@post("/strict", status_code=200)
async def strict(data: JSONBody[Payment]) -> int:
    return data.amount


@get("/pages")
async def pages(limit: FromQuery[int]) -> int:
    return limit


@get("/health", sync_to_thread=False)
def health() -> str:
    return "lives"


RAISED: dict[str, Callable[[], Exception]] = {
    "purse": lambda: PurseEmpty(available=3, required=5, account_id=UUID(int=7)),
    "queue": lambda: QueueFull(retry_after_s=2.6),
    "unmapped": Unmapped,
    "bug": lambda: ZeroDivisionError("secret"),
    "database": lambda: DatabaseUnavailable(reason="connect to db.internal failed"),
}


@get("/raise/{name:str}")
async def fail(name: FromPath[str]) -> None:
    error = RAISED[name]()
    raise error


def principal_of(token: str) -> Principal:
    scopes = {
        "good": frozenset({"credits:read", "credits:write"}),
        "reader": frozenset({"credits:read"}),
    }
    if token not in scopes:
        raise KeyUnknown
    return Principal(key_id=UUID(int=1), scopes=scopes[token], tenant_id=TenantId("acme"))


@pytest.fixture
def application() -> ASGIApp:
    routes = Litestar(
        [pay, echo, strict, pages, health, fail],
        exception_handlers=exception_handlers(PROBLEMS),
        logging_config=None,
        openapi_config=None,
        request_max_body_size=None,
    )
    limited = BodyLimit(routes, limit_bytes=BODY_LIMIT_BYTES, problems=PROBLEMS)
    return Authentication(
        limited,
        principal_of=principal_of,
        problems=PROBLEMS,
        clock=SystemClock(),
        tally=AuthenticationTally(),
    )


@pytest.fixture
async def client(application: ASGIApp) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=application)  # type: ignore[arg-type]  # other ASGI types
    headers = {"Authorization": "Bearer good"}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://test", headers=headers
    ) as client:
        yield client


@pytest.fixture
async def address(application: ASGIApp) -> AsyncIterator[tuple[str, int]]:
    """Serve the application with uvicorn on a free loopback port."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        application,
        log_config=None,
        access_log=False,
        lifespan="off",
        http="httptools",
        ws="none",
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    async with asyncio.timeout(10):
        while not server.started:
            await asyncio.sleep(0.005)
    try:
        yield listener.getsockname()
    finally:
        server.should_exit = True
        await serving
        listener.close()


Exchange = Callable[..., Coroutine[None, None, list[tuple[int, bytes]]]]


@pytest.fixture
async def exchange(address: tuple[str, int]) -> Exchange:
    """Return a function: raw requests over one connection in, (status, body) of each out."""

    async def run(*requests: bytes) -> list[tuple[int, bytes]]:
        reader, writer = await asyncio.open_connection(*address)
        answers = []
        async with asyncio.timeout(10):
            for request in requests:
                writer.write(request)
                await writer.drain()
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = next(
                    int(line.split(":")[1])
                    for line in head.lower().splitlines()
                    if line.startswith("content-length:")
                )
                answers.append((int(head.split()[1]), await reader.readexactly(length)))
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        return answers

    return run
