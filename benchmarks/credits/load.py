"""The load generator: a process of its own beside the server, on the same cores.

One keep-alive connection for each caller, one request under way on each. The client's bare
connection is used, without its retries: an answer that is not the expected one ends the benchmark.
"""

import asyncio
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from random import Random
from typing import TypeVar

import msgspec
import uvloop

from benchmarks.measure import Load, Sample, Step, closed_loop
from tollkeeper.client.connection import Connection, parse_origin
from tollkeeper.client.messages import Operation
from tollkeeper.kernel.ids import entropy_in_blocks, mint_key

BATCH_SIZE = 500
"""Operations in one `/v1/batch` (DESIGN section 6)."""

_Plan = TypeVar("_Plan")
_Result = TypeVar("_Result")


class Request(StrEnum):
    """What every connection asks for."""

    HEALTH = "health"
    BALANCE = "balance"
    CONSUME = "consume"
    BATCH = "batch"


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLoad:
    """One round of requests to the service at `url`."""

    url: str
    api_key: str
    request: Request
    accounts: list[str]
    load: Load
    seed: int = 0


async def measure_http(plan: HttpLoad) -> Sample:
    """Run the load in a fresh process and return what its callers saw."""
    return await in_process(_generate, plan)


async def in_process(work: Callable[[_Plan], _Result], plan: _Plan) -> _Result:
    """Do `work` in a fresh process and return its result."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return await asyncio.get_running_loop().run_in_executor(process, work, plan)


def _generate(plan: HttpLoad) -> Sample:
    return uvloop.run(_run(plan))


async def _run(plan: HttpLoad) -> Sample:
    origin = parse_origin(plan.url)
    headers = (("Authorization", f"Bearer {plan.api_key}"),)
    connections = [Connection(origin, headers=headers) for _ in range(plan.load.callers)]
    caller = _Caller(plan)
    steps = [caller.step_on(connection) for connection in connections]
    operations_per_answer = BATCH_SIZE if plan.request is Request.BATCH else 1
    try:
        return await closed_loop(steps, plan.load, operations_per_step=operations_per_answer)
    finally:
        for connection in connections:
            connection.abort()


class _Caller:
    """Puts requests together; shared by the connections of one round."""

    def __init__(self, plan: HttpLoad) -> None:
        self._plan = plan
        self._random = Random(plan.seed)
        self._entropy = entropy_in_blocks()
        self._encoder = msgspec.json.Encoder()

    def step_on(self, connection: Connection) -> Step:
        """Return one caller's step on its connection."""
        match self._plan.request:
            case Request.HEALTH:
                return lambda: self._ask(connection, "/health")
            case Request.BALANCE:
                return lambda: self._ask(connection, f"/v1/accounts/{self._account()}")
            case Request.CONSUME:
                return lambda: self._consume(connection)
            case Request.BATCH:
                return lambda: self._send_batch(connection)

    def _account(self) -> str:
        accounts = self._plan.accounts
        return accounts[int(self._random.random() * len(accounts))]

    def _key(self) -> str:
        return mint_key(datetime.now(UTC), self._entropy())

    async def _ask(self, connection: Connection, path: str) -> None:
        response = await connection.request("GET", path)
        assert response.status == 200, response.body

    async def _consume(self, connection: Connection) -> None:
        response = await connection.request(
            "POST",
            f"/v1/accounts/{self._account()}/consumptions",
            (("Idempotency-Key", self._key()), ("Content-Type", "application/json")),
            b'{"amount":%d}' % (1 + int(self._random.random() * 1_000)),
        )
        assert response.status == 201, response.body

    async def _send_batch(self, connection: Connection) -> None:
        operations = [
            Operation(
                op="consume", account_id=self._account(), amount=1, idempotency_key=self._key()
            )
            for _ in range(BATCH_SIZE)
        ]
        body = self._encoder.encode({"operations": operations})
        headers = (("Content-Type", "application/json"),)
        response = await connection.request("POST", "/v1/batch", headers, body)
        assert response.status == 200, response.body
        assert response.body.count(b'"status":201') == BATCH_SIZE, response.body[:1_000]
