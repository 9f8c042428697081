"""The service over HTTP, as `tollkeeper up` runs it, with the load generator beside it.

Consumption against the no-op route of the same process shows what the ledger costs above the HTTP
server; batches of 500 and the absolute figures of SPEC C9 show what a caller gets.
"""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import uvloop

from benchmarks.bench import Bench
from benchmarks.credits.engine import absolute_figures, prove_exact
from benchmarks.credits.load import BATCH_SIZE, HttpLoad, Request, measure_http
from benchmarks.credits.workload import FIRST_BALANCE_MINOR, account_names
from benchmarks.figures import Figure, load_note
from benchmarks.measure import Sample, in_pairs, median_rate, median_ratio
from tollkeeper.client.connection import Connection, parse_origin
from tollkeeper.client.credits import CreditsClient
from tollkeeper.client.load import run_batches
from tollkeeper.client.messages import Operation
from tollkeeper.config import Settings
from tollkeeper.up import Stack, local_stack

ACCOUNTS = 10_000
CALLERS = 100
MANY_CALLERS = 400
BATCH_CALLERS = 8
"""Batches under way at once."""


def measure(bench: Bench) -> list[Figure]:
    """Return the figures of one service process, then of two."""
    return [*uvloop.run(_one_process(bench)), *uvloop.run(_two_processes(bench))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A running stack and the rounds measured on it."""

    bench: Bench
    stack: Stack
    processes: int

    def rounds(self, request: Request, callers: int) -> Callable[[], Awaitable[Sample]]:
        """Return what measures one round of `callers` connections."""
        plan = HttpLoad(
            url=self.stack.url,
            api_key=self.stack.api_key,
            request=request,
            accounts=account_names(ACCOUNTS),
            load=self.bench.load(callers),
        )

        async def measured() -> Sample:
            operations, batches = await self._batches()
            sample = await measure_http(plan)
            operations_after, batches_after = await self._batches()
            if batches_after == batches or self.processes > 1:  # a scrape answers for one process
                return sample
            mean = (operations_after - operations) / (batches_after - batches)
            return replace(sample, batch_mean=mean)

        return self.bench.reported(f"HTTP {request.value}, {callers} connections", measured)

    async def samples(self, request: Request, callers: int) -> tuple[Sample, ...]:
        """Measure all rounds of one kind."""
        measure_round = self.rounds(request, callers)
        return tuple([await measure_round() for _ in range(self.bench.rounds)])

    async def posted(self) -> int:
        """Return how many movements this service's process answered as standing in the ledger."""
        counts = [
            await self._metric(f'credits_operations_total{{kind="{kind}",result="ok"}}')
            for kind in ("topup", "consume")
        ]
        return int(sum(counts))

    async def _batches(self) -> tuple[float, float]:
        return await self._metric("credits_batch_size_sum"), await self._metric(
            "credits_batch_size_count"
        )

    async def _metric(self, name: str) -> float:
        connection = Connection(parse_origin(self.stack.url))
        try:
            text = (await connection.request("GET", "/metrics")).body.decode()
        finally:
            connection.abort()
        return next(
            float(line.rpartition(" ")[2])
            for line in text.splitlines()
            if line.startswith(f"{name} ")
        )


@asynccontextmanager
async def running_service(bench: Bench, *, processes: int) -> AsyncIterator[Service]:
    """Run `tollkeeper up` with funded accounts, in a directory of its own."""
    settings = Settings(
        data=bench.fresh_directory("up"), credits_port=free_port(), shadow_port=free_port()
    )
    async with local_stack(settings, processes=processes) as stack:
        async with CreditsClient(stack.url, stack.api_key) as client:
            names = account_names(ACCOUNTS)
            await run_batches(
                client, [Operation(op="open", account_id=name, tenant_id="bench") for name in names]
            )
            await run_batches(
                client,
                [
                    Operation(op="topup", account_id=name, amount=FIRST_BALANCE_MINOR)
                    for name in names
                ],
            )
        yield Service(bench=bench, stack=stack, processes=processes)


def free_port() -> int:
    """Return a TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _one_process(bench: Bench) -> list[Figure]:
    async with running_service(bench, processes=1) as service:
        pairs = await in_pairs(
            bench.rounds,
            service.rounds(Request.CONSUME, CALLERS),
            service.rounds(Request.HEALTH, CALLERS),
        )
        batches = await service.samples(Request.BATCH, BATCH_CALLERS)
        many = await service.samples(Request.CONSUME, MANY_CALLERS)
        exact = await prove_exact(service.stack.dsn("credits"), await service.posted())
    ours, theirs = tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)
    what = f"HTTP consumption, {CALLERS} connections"
    return [
        Figure(
            what=f"{what}, against the no-op route",
            value=median_ratio(pairs),
            unit="x",
            target=0.6,
            samples=ours,
            compared=theirs,
            note=f"{median_rate(ours):,.0f}/s : {median_rate(theirs):,.0f}/s, {load_note(ours)}",
        ),
        *absolute_figures(what, ours, least_rate=6_000),
        Figure(
            what=f"HTTP batches of {BATCH_SIZE}, {BATCH_CALLERS} connections",
            value=median_rate(batches),
            unit="/s",
            target=25_000,
            samples=batches,
            note=f"latencies of whole batches, {load_note(batches)}",
        ),
        *absolute_figures(f"HTTP consumption, {MANY_CALLERS} connections", many),
        exact,
    ]


async def _two_processes(bench: Bench) -> list[Figure]:
    async with running_service(bench, processes=2) as service:
        samples = await service.samples(Request.CONSUME, CALLERS)
    return [
        Figure(
            what=f"HTTP load test, {CALLERS} connections, two service processes",
            value=median_rate(samples),
            unit="/s",
            target=10_000,
            samples=samples,
            note=load_note(samples),
        )
    ]
