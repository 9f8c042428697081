"""The shadow service over HTTP, as `tollkeeper up` runs it, with the load generator beside it.

Outcomes of 50,000 assigned units, one by one and in batches of 500; units assigned anew; and the
choice that an assigned unit asks for again, which is what a caller without the client library
waits for. Beside the rates: that the counters are what a recount of all rows gives.
"""

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Final

import msgspec
import uvloop

from benchmarks.bench import Bench
from benchmarks.credits.http import free_port
from benchmarks.credits.load import BATCH_SIZE, in_process
from benchmarks.figures import Figure, load_note
from benchmarks.measure import Load, Sample, Step, closed_loop, median_percentiles, median_rate
from tollkeeper.client.connection import Connection, Headers, parse_origin
from tollkeeper.config import Settings
from tollkeeper.database.connect import connector
from tollkeeper.database.queries import load_queries
from tollkeeper.up import Stack, local_stack

EXPERIMENT: Final = "bench"
UNITS: Final = 50_000
CALLERS: Final = 100
BATCH_CALLERS: Final = 8
CHOOSERS: Final = 1
"""A single caller: what one choice takes, and not how long others are waited for."""

_JSON: Headers = (("Content-Type", "application/json"),)


class Request(StrEnum):
    """What every connection asks for."""

    OUTCOME = "outcomes"
    OUTCOMES = "outcomes in batches"
    ASSIGN = "assignments"
    CHOICE = "choice of a variant"


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLoad:
    """One round of requests to the service at `url`; `run` makes its ids its own."""

    url: str
    api_key: str
    request: Request
    load: Load
    run: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One kind of request: callers at once, and the rate that is wanted."""

    request: Request
    callers: int
    least_rate: float | None = None


PARTS: Final = (
    Part(request=Request.OUTCOME, callers=CALLERS, least_rate=3_000),
    Part(request=Request.OUTCOMES, callers=BATCH_CALLERS, least_rate=30_000),
    Part(request=Request.ASSIGN, callers=CALLERS, least_rate=4_000),
)


def measure(bench: Bench) -> list[Figure]:
    """Return the figures of one service process."""
    return uvloop.run(_measure(bench))


async def _measure(bench: Bench) -> list[Figure]:
    async with _running(bench) as (stack, url):
        runs = itertools.count(1)

        def rounds(request: Request, callers: int) -> Callable[[], Awaitable[Sample]]:
            async def measured() -> Sample:
                plan = HttpLoad(
                    url=url, api_key=stack.api_key, request=request, load=bench.load(callers),
                    run=next(runs),
                )  # fmt: skip
                return await in_process(_generate, plan)

            return bench.reported(f"HTTP {request.value}, {callers} connections", measured)

        figures = []
        for part in PARTS:
            measure_round = rounds(part.request, part.callers)
            samples = tuple([await measure_round() for _ in range(bench.rounds)])
            figures.append(_rate(part, samples))
        choose = rounds(Request.CHOICE, CHOOSERS)
        figures += _choice(tuple([await choose() for _ in range(bench.rounds)]))
        figures.append(await _recounted(stack.dsn("shadow")))
    return figures


@asynccontextmanager
async def _running(bench: Bench) -> AsyncIterator[tuple[Stack, str]]:
    """Run `tollkeeper up` with an experiment whose units are assigned."""
    settings = Settings(
        data=bench.fresh_directory("up"), credits_port=free_port(), shadow_port=free_port()
    )
    async with local_stack(settings) as stack:
        assert stack.shadow_url is not None
        connection = _connection(stack.shadow_url, stack.api_key)
        try:
            body = {
                "experiment_id": EXPERIMENT,
                "variants": [{"name": "control"}, {"name": "new"}],
                "metrics": [
                    {"name": "purchase", "kind": "binary"},
                    {"name": "latency", "kind": "continuous", "direction": "lower"},
                ],
                "units": 1_000_000_000,  # no look is due while it is measured
                "looks": 1,
                "state": "running",
            }
            await _post(connection, "/v1/experiments", body, status=201)
            for first in range(0, UNITS, BATCH_SIZE):
                units = [{"unit_id": _unit(number)} for number in range(first, first + BATCH_SIZE)]
                path = f"/v1/experiments/{EXPERIMENT}/assignments"
                await _post(connection, path, {"units": units}, status=200)
        finally:
            connection.abort()
        yield stack, stack.shadow_url


def _rate(part: Part, samples: tuple[Sample, ...]) -> Figure:
    size = f" of {BATCH_SIZE}" if part.request is Request.OUTCOMES else ""
    note = f"latencies of whole batches, {load_note(samples)}" if size else load_note(samples)
    return Figure(
        what=f"HTTP {part.request.value}{size}, {part.callers} connections",
        value=median_rate(samples),
        unit="/s",
        target=part.least_rate,
        samples=samples,
        note=note,
    )


def _choice(samples: tuple[Sample, ...]) -> list[Figure]:
    p50_ms, _, p99_ms = median_percentiles(samples)
    what = f"HTTP {Request.CHOICE.value}, {CHOOSERS} connection"
    return [
        Figure(what=f"{what}, P50", value=p50_ms, unit="ms", samples=samples),
        Figure(
            what=f"{what}, P99", value=p99_ms, unit="ms", target=5.0, at_most=True,
            samples=samples, note=load_note(samples),
        ),
    ]  # fmt: skip


async def _recounted(dsn: str) -> Figure:
    """Return how many counters differ from a recount of all rows."""
    sql = load_queries("benchmarks.shadow")
    connection = await connector(dsn)()
    try:
        number = await connection.fetchval(sql["number"], EXPERIMENT)
        found: int = await connection.fetchval(sql["differences"], number)
    finally:
        await connection.close()
    return Figure(
        what="counters that a recount contradicts", value=found, unit="", target=0, at_most=True
    )


def _generate(plan: HttpLoad) -> Sample:
    return uvloop.run(_run(plan))


async def _run(plan: HttpLoad) -> Sample:
    connections = [_connection(plan.url, plan.api_key) for _ in range(plan.load.callers)]
    caller = _Caller(plan)
    steps = [caller.step_on(connection) for connection in connections]
    together = BATCH_SIZE if plan.request is Request.OUTCOMES else 1
    try:
        return await closed_loop(steps, plan.load, operations_per_step=together)
    finally:
        for connection in connections:
            connection.abort()


class _Caller:
    """Puts requests together; shared by the connections of one round."""

    def __init__(self, plan: HttpLoad) -> None:
        self._plan = plan
        self._random = Random(plan.run)
        self._numbers = itertools.count()

    def step_on(self, connection: Connection) -> Step:
        """Return one caller's step on its connection."""
        match self._plan.request:
            case Request.OUTCOME:
                return lambda: self._report(connection)
            case Request.OUTCOMES:
                return lambda: self._send_batch(connection)
            case Request.ASSIGN:
                return lambda: self._assign(connection, self._new_unit(), status=201)
            case Request.CHOICE:
                return lambda: self._assign(connection, self._any_unit(), status=200)

    def _any_unit(self) -> str:
        return _unit(int(self._random.random() * UNITS))

    def _new_unit(self) -> str:
        return f"new-{self._plan.run}-{next(self._numbers)}"

    def _outcome(self) -> dict[str, object]:
        number = next(self._numbers)
        is_purchase = number % 2 == 0
        return {
            "experiment_id": EXPERIMENT,
            "unit_id": self._any_unit(),
            "outcome_id": f"o-{self._plan.run}-{number}",
            "metric": "purchase" if is_purchase else "latency",
            "value": int(number % 20 == 0) if is_purchase else number % 1_000,
        }

    async def _assign(self, connection: Connection, unit_id: str, *, status: int) -> None:
        path = f"/v1/experiments/{EXPERIMENT}/assignments"
        await _post(connection, path, {"unit_id": unit_id}, status=status)

    async def _report(self, connection: Connection) -> None:
        await _post(connection, "/v1/outcomes", self._outcome(), status=201)

    async def _send_batch(self, connection: Connection) -> None:
        body = {"outcomes": [self._outcome() for _ in range(BATCH_SIZE)]}
        answer = await _post(connection, "/v1/outcomes", body, status=200)
        assert answer.count(b'"status":201') == BATCH_SIZE, answer[:1_000]


def _unit(number: int) -> str:
    return f"unit-{number:06d}"


def _connection(url: str, api_key: str) -> Connection:
    return Connection(parse_origin(url), headers=(("Authorization", f"Bearer {api_key}"),))


async def _post(connection: Connection, path: str, body: object, *, status: int) -> bytes:
    response = await connection.request("POST", path, _JSON, msgspec.json.encode(body))
    assert response.status == status, response.body[:1_000]
    return response.body
