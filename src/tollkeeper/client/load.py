"""Load in a closed loop: workers that each wait for one answer before they ask the next question.

Shared by `replay`, `bench` and `demo`. Not a way to call the ledger, which is `credits.py`: this
counts what became of many calls, and checks afterwards that no unit was lost.

Invariants: every latency of a run is kept, so percentiles are exact; a call that was answered is
counted once, as charged, replayed, refused or failed.
"""

import asyncio
import math
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tollkeeper.client.credits import CreditsClient
from tollkeeper.client.errors import CallFailed, CallRefused
from tollkeeper.client.messages import BatchResult, Fault, Operation, Receipt
from tollkeeper.kernel.clock import Clock

BATCH_SIZE = 500
"""Operations per batch when accounts are opened and topped up."""

_Job = TypeVar("_Job")


async def run_closed_loop(
    jobs: Iterator[_Job], work: Callable[[_Job], Awaitable[None]], *, workers: int
) -> None:
    """Do all jobs, at most `workers` at a time, each taken when a worker is free.

    The first error ends the run and is raised as it is.
    """

    async def take_jobs() -> None:
        for job in jobs:
            await work(job)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(take_jobs())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiles:
    """Latencies of a run in milliseconds, exact (nearest rank)."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float


class Latencies:
    """Every latency of a run, eight bytes each."""

    def __init__(self) -> None:
        self._seconds = array("d")

    def __len__(self) -> int:
        return len(self._seconds)

    def add(self, duration_s: float) -> None:
        """Keep one latency, in seconds."""
        self._seconds.append(duration_s)

    def quantiles(self) -> Quantiles | None:
        """Return the percentiles, or None when nothing was measured."""
        if not self._seconds:
            return None
        ordered = sorted(self._seconds)

        def at(fraction: float) -> float:
            return round(ordered[math.ceil(fraction * len(ordered)) - 1] * 1_000.0, 3)

        return Quantiles(p50_ms=at(0.50), p95_ms=at(0.95), p99_ms=at(0.99), max_ms=at(1.0))


class Tally:
    """What became of the consumptions of a run; mutable, one per run."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._started_s = clock.monotonic_s()
        self._ended_s: float | None = None
        self.charged = 0
        self.charged_units = 0
        self.replayed = 0
        self.replayed_units = 0
        self.refused: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.latencies = Latencies()

    @property
    def requests(self) -> int:
        """Return how many calls have been answered."""
        return len(self.latencies)

    @property
    def elapsed_s(self) -> float:
        """Return the length of the run so far."""
        ended_s = self._clock.monotonic_s() if self._ended_s is None else self._ended_s
        return ended_s - self._started_s

    @property
    def rate_per_s(self) -> float:
        """Return answered calls per second."""
        return self.requests / self.elapsed_s if self.elapsed_s > 0 else 0.0

    def start(self) -> None:
        """Begin the run now."""
        self._started_s = self._clock.monotonic_s()

    def stop(self) -> None:
        """End the run now."""
        self._ended_s = self._clock.monotonic_s()

    async def consume(
        self,
        client: CreditsClient,
        account_id: str,
        amount: int,
        *,
        key: str | None = None,
        due_s: float | None = None,
    ) -> None:
        """Bill one consumption and count it.

        With `due_s` (monotonic) the latency counts from when the call was due, so that a run which
        falls behind its schedule cannot hide it.

        Raises:
            ClientError: the service is gone, or no such call can succeed (400, 401, 403 ...).
        """
        await self._count(client.consume(account_id, amount, key=key), due_s)

    async def hold_and_capture(
        self,
        client: CreditsClient,
        account_id: str,
        amount: int,
        *,
        held: int,
        keys: tuple[str, str],
        due_s: float | None = None,
    ) -> None:
        """Hold `held`, capture `amount` for good, and count that as one call; else as `consume`.

        What passes the hold is its allowance, what is left of it is given back. `keys` are those
        of the hold and of the capture.

        Raises:
            ClientError: as `consume`.
        """
        hold_key, capture_key = keys

        async def settled() -> Receipt:
            made = await client.hold(
                account_id, held, allowance=max(0, amount - held), key=hold_key
            )
            assert made.transaction.hold_id is not None
            return await client.capture(
                made.transaction.hold_id, amount, final=True, key=capture_key
            )

        await self._count(settled(), due_s)

    async def _count(self, call: Awaitable[Receipt], due_s: float | None) -> None:
        started_s = self._clock.monotonic_s() if due_s is None else due_s
        try:
            receipt = await call
        except CallRefused as error:
            self.refused[error.name] += 1
        except CallFailed as error:
            if error.status < 500 and error.status != 429:
                raise
            self.failed[error.name] += 1
        else:
            if receipt.replayed:
                self.replayed += 1
                self.replayed_units += receipt.transaction.amount
            else:
                self.charged += 1
                self.charged_units += receipt.transaction.amount
        self.latencies.add(self._clock.monotonic_s() - started_s)


async def run_batches(
    client: CreditsClient, operations: Sequence[Operation], *, workers: int = 2
) -> list[BatchResult]:
    """Send operations in batches of `BATCH_SIZE` and return their results in order.

    Raises:
        CallFailed: the first operation that was not accepted.
    """
    results: list[BatchResult | None] = [None] * len(operations)

    async def send(start: int) -> None:
        answers = await client.batch(operations[start : start + BATCH_SIZE])
        for offset, result in enumerate(answers):
            problem = result.problem
            if problem is not None:
                failure = CallRefused if problem.status in (402, 404, 409, 422) else CallFailed
                raise failure(
                    status=problem.status,
                    type=problem.type,
                    title=problem.title,
                    detail=problem.detail,
                )
            results[start + offset] = result

    await run_closed_loop(iter(range(0, len(operations), BATCH_SIZE)), send, workers=workers)
    return [result for result in results if result is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """Accounts as the ledger's own history tells them, and what `verify` found; units are minor."""

    accounts: int
    transactions: int
    topped_up: int
    consumed: int
    balances: int
    faults: tuple[Fault, ...]

    @property
    def is_conserved(self) -> bool:
        """Tell whether every unit that was topped up is either consumed or still there."""
        return self.balances + self.consumed == self.topped_up

    @property
    def is_clean(self) -> bool:
        """Tell whether units are conserved and the chain holds."""
        return self.is_conserved and not self.faults


class Auditor:
    """Reads the history of accounts and has them verified; `done` counts accounts as it goes."""

    def __init__(self, client: CreditsClient) -> None:
        self._client = client
        self._sums: Counter[str] = Counter()
        self._faults: list[Fault] = []
        self.done = 0

    async def audit(self, account_ids: Sequence[str], *, workers: int = 4) -> Audit:
        """Audit these accounts; a ledger that is being written to is audited as it was read."""
        await run_closed_loop(iter(account_ids), self._read_history, workers=workers)
        # One verification at a time: the service refuses a second beside it.
        await run_closed_loop(iter(account_ids), self._verify, workers=1)
        return Audit(
            accounts=len(account_ids),
            transactions=self._sums["transactions"],
            topped_up=self._sums["topup"],
            consumed=self._sums["consume"] + self._sums["capture"] - self._sums["refund"],
            balances=self._sums["balances"],
            faults=tuple(self._faults),
        )

    async def _read_history(self, account_id: str) -> None:
        balance = 0
        async for transaction in self._client.transactions(account_id):
            self._sums[transaction.kind] += transaction.amount
            self._sums["transactions"] += 1
            balance = transaction.balance
        self._sums["balances"] += balance

    async def _verify(self, account_id: str) -> None:
        verification = await self._client.verify(account_id)
        self._faults.extend(verification.faults)
        self.done += 1
