"""`tollkeeper bench`: how much a running service takes from this machine, in a closed loop.

Not the benchmark of the README (that is `make bench`, which starts its own server and compares):
this one loads whatever service it is pointed at, with accounts of its own that stay behind.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from tollkeeper.client.credits import CreditsClient
from tollkeeper.client.load import Latencies, Tally, run_batches, run_closed_loop
from tollkeeper.client.messages import Operation
from tollkeeper.client.summary import (
    Facts,
    counts_fact,
    quantiles_document,
    quantiles_text,
    tally_document,
    tally_facts,
)
from tollkeeper.client.terminal import Screen
from tollkeeper.kernel.clock import Clock

FUNDS_MINOR = 1_000_000_000
"""What every account starts with: more than a run can consume."""

BATCH_CONNECTIONS = 4
"""Batches under way at a time: enough to keep the service busy while one is put together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """How much load, for how long."""

    connections: int = 100
    seconds: float = 10.0
    accounts: int = 10_000
    batch: int = 500
    tenant_id: str = "bench"


class Bench:
    """One run: accounts, then single consumptions, then batches."""

    def __init__(
        self,
        options: BenchOptions,
        connect: Callable[[int], CreditsClient],
        *,
        screen: Screen,
        clock: Clock,
        run: str,
    ) -> None:
        self._options = options
        self._connect = connect
        self._screen = screen
        self._clock = clock
        self._accounts = [f"bench-{run}-{number:05}" for number in range(options.accounts)]
        self._done = 0

    async def run(self) -> bool:
        """Load the service and report; tell whether nothing failed."""
        async with self._connect(self._options.connections) as client:
            await self._open_accounts(client)
            single = await self._consume_singly(client)
        async with self._connect(BATCH_CONNECTIONS) as client:
            batches = await self._consume_in_batches(client)
        self._report(single, batches)
        return not single.failed and not batches.failed

    async def _open_accounts(self, client: CreditsClient) -> None:
        tenant_id = self._options.tenant_id
        self._screen.remark(f"opening and funding {len(self._accounts):,} accounts")
        await run_batches(
            client,
            [Operation(op="open", account_id=each, tenant_id=tenant_id) for each in self._accounts],
        )
        await run_batches(
            client,
            [Operation(op="topup", account_id=each, amount=FUNDS_MINOR) for each in self._accounts],
        )

    async def _consume_singly(self, client: CreditsClient) -> Tally:
        tally = Tally(self._clock)
        accounts = self._accounts

        async def consume(number: int) -> None:
            await tally.consume(client, accounts[number % len(accounts)], 1 + number % 97)

        def done() -> int:
            return tally.requests

        async with self._screen.progress("consumptions", total=None, done=done):
            tally.start()
            jobs = self._numbers_until(self._clock.monotonic_s() + self._options.seconds)
            await run_closed_loop(jobs, consume, workers=self._options.connections)
            tally.stop()
        return tally

    async def _consume_in_batches(self, client: CreditsClient) -> "BatchTally":
        tally = BatchTally(size=self._options.batch)
        accounts, size, clock = self._accounts, self._options.batch, self._clock

        async def send(number: int) -> None:
            first = number * size
            operations = [
                Operation(op="consume", account_id=accounts[each % len(accounts)], amount=1)
                for each in range(first, first + size)
            ]
            started_s = clock.monotonic_s()
            results = await client.batch(operations)
            tally.latencies.add(clock.monotonic_s() - started_s)
            for result in results:
                if result.problem is None:
                    tally.accepted += 1
                else:
                    tally.failed[result.problem.name] += 1

        def done() -> int:
            return tally.accepted

        async with self._screen.progress(f"batches of {size}", total=None, done=done):
            started_s = clock.monotonic_s()
            jobs = self._numbers_until(started_s + self._options.seconds)
            await run_closed_loop(jobs, send, workers=BATCH_CONNECTIONS)
            tally.elapsed_s = clock.monotonic_s() - started_s
        return tally

    def _numbers_until(self, end_s: float) -> Iterator[int]:
        number = 0
        while self._clock.monotonic_s() < end_s:
            yield number
            number += 1

    def _report(self, single: Tally, batches: "BatchTally") -> None:
        if self._screen.as_json:
            document = {
                "options": asdict(self._options),
                "consumptions": tally_document(single),
                "batches": batches.document(),
            }
            self._screen.json(document)
            return
        connections = self._options.connections
        title = f"Consumptions, {connections} connections, {len(self._accounts):,} accounts"
        self._screen.facts(title, tally_facts(single))
        self._screen.facts(f"Batches of {batches.size}", batches.facts())


class BatchTally:
    """What became of the operations of batches; mutable, one per run."""

    def __init__(self, *, size: int) -> None:
        self.size = size
        self.accepted = 0
        self.failed: Counter[str] = Counter()
        self.latencies = Latencies()
        self.elapsed_s = 0.0

    @property
    def rate_per_s(self) -> float:
        """Return accepted operations per second."""
        return self.accepted / self.elapsed_s if self.elapsed_s > 0 else 0.0

    def document(self) -> dict[str, object]:
        """Return the tally as JSON members; latencies are of whole batches."""
        return {
            "size": self.size,
            "batches": len(self.latencies),
            "accepted": self.accepted,
            "failed": dict(self.failed),
            "elapsed_s": round(self.elapsed_s, 3),
            "operations_per_s": round(self.rate_per_s, 1),
            "batch_latency": quantiles_document(self.latencies.quantiles()),
        }

    def facts(self) -> Facts:
        """Return the tally for the screen."""
        rate = f"{self.rate_per_s:,.0f}/s"
        return (
            ("operations", f"{self.accepted:,} in {self.elapsed_s:,.1f} s: {rate}"),
            ("batch latency", quantiles_text(self.latencies.quantiles())),
            counts_fact("failed", self.failed, tone="bad"),
        )
