"""`tollkeeper replay`: bills a usage trace over the HTTP API, one consumption per line, once.

Not a loader: it takes no way that another caller could not take. Keys come from the file's content,
the line and the terms, so a second run, or one after an interruption, charges nothing twice while
the service keeps its keys (24 hours); later it is refused unless it is told to be another `run`.

Invariants: no line is billed before all lines are checked; what is billed is what was checked.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from tollkeeper.client.credits import CreditsClient
from tollkeeper.client.load import Audit, Auditor, Tally, run_batches, run_closed_loop
from tollkeeper.client.messages import Operation
from tollkeeper.client.summary import (
    audit_document,
    audit_facts,
    tally_document,
    tally_facts,
)
from tollkeeper.client.terminal import Screen
from tollkeeper.client.trace import (
    BadLine,
    BinaryFile,
    Survey,
    Terms,
    TraceMalformed,
    TraceUnbillable,
    price_rows,
    survey_trace,
)
from tollkeeper.kernel.amounts import MAX_AMOUNT_MINOR
from tollkeeper.kernel.clock import Clock

KEY_LIFETIME = timedelta(hours=24)
"""How long the service keeps an idempotency key (SPEC C3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """What to replay and how; `speed` None is as fast as the connections allow."""

    trace: Path
    terms: Terms
    tenant_id: str = "replay"
    speed: float | None = None
    connections: int = 16
    skip_bad: bool = False
    hold: bool = False
    topup: int | None = None


class Bill(NamedTuple):
    """One line to be billed; `offset_s` is its time in the trace since the first line's.

    `context_cost` is known before the work: what a hold reserves.
    """

    line: int
    account: int
    cost: int
    offset_s: float
    context_cost: int


class Replay:
    """One replay of one trace; its counts can be read while it runs and after it was stopped."""

    def __init__(
        self,
        options: ReplayOptions,
        connect: Callable[[int], CreditsClient],
        *,
        screen: Screen,
        clock: Clock,
    ) -> None:
        self._options = options
        self._connect = connect
        self._screen = screen
        self._clock = clock
        self._latest_s = 0.0
        self._identity = (0, 0)
        self.tally = Tally(clock)
        self._billable = 0

    async def run(self) -> bool:
        """Check, bill, audit, report; tell whether everything was billed or refused by rule.

        Raises:
            TraceMalformed: nothing was billed; the lines are named.
            TraceUnbillable: nothing was billed; the terms do not allow it.
            ClientError: the service is gone, or does not let us; running again continues.
        """
        try:
            file = self._options.trace.open("rb")
        except OSError as error:
            problem = f"{self._options.trace} cannot be read: {error.strerror}"
            raise TraceUnbillable(problem=problem) from error
        with file:
            survey = self._survey(file)
            async with self._connect(self._options.connections) as client:
                await self._open_accounts(client, survey)
                await self._bill(client, survey, file)
                audit = await self._audit(client, survey)
        self._report(survey, audit)
        return audit.is_clean and self._is_accounted(audit) and not self.tally.failed

    def explain_stop(self) -> None:
        """Say how far a run came that did not end, and what to do."""
        if self.tally.requests:
            self._screen.warn(
                f"stopped after {self.tally.requests:,} of {self._billable:,}; the same command "
                "continues: what is billed is not charged again"
            )

    def _survey(self, file: BinaryFile) -> Survey:
        if not file.seekable():
            raise TraceUnbillable(problem="a trace must be a file: it is read twice")
        self._screen.remark(f"checking {self._options.trace}")
        self._identity = _identity_of(file)
        survey = survey_trace(file, self._options.terms)
        if survey.bad and (not self._options.skip_bad or not survey.rows):
            path = str(self._options.trace)
            raise TraceMalformed(path=path, bad=survey.bad, count=survey.bad_count)
        if max(survey.units_by_account) > MAX_AMOUNT_MINOR:
            problem = "an account would be billed more than a balance can hold; use more accounts"
            raise TraceUnbillable(problem=problem)
        for bad in survey.bad:
            self._screen.warn(f"line {bad.line:,} skipped: {bad.problem}")
        if survey.bad_count > len(survey.bad):
            self._screen.warn(f"{survey.bad_count - len(survey.bad):,} more lines skipped")
        self._billable = survey.billable
        return survey

    async def _open_accounts(self, client: CreditsClient, survey: Survey) -> None:
        tenant_id = self._options.tenant_id
        ids = survey.account_ids
        opens = [Operation(op="open", account_id=each, tenant_id=tenant_id) for each in ids]
        opened = await run_batches(client, opens)
        moments = [result.account.created_at for result in opened if result.account is not None]
        self._refuse_expired(min(moments, default=None))
        topups = [
            Operation(
                op="topup",
                account_id=account_id,
                amount=amount,
                idempotency_key=survey.topup_key(number, amount),
                description="replay",
            )
            for number, (account_id, units) in enumerate(
                zip(ids, survey.units_by_account, strict=True)
            )
            if (amount := units if self._options.topup is None else self._options.topup)
        ]
        await run_batches(client, topups)

    def _refuse_expired(self, first_billed: datetime | None) -> None:
        # The accounts are this trace's own, so their age bounds the age of every key.
        if first_billed is not None and self._clock.now() - first_billed > KEY_LIFETIME:
            problem = (
                f"this trace was first billed at {first_billed.isoformat(timespec='seconds')}; the "
                "service keeps keys for 24 hours, so billing it again could charge it twice. "
                "Use --run NAME to bill it anew on other accounts"
            )
            raise TraceUnbillable(problem=problem)

    async def _bill(self, client: CreditsClient, survey: Survey, file: BinaryFile) -> None:
        tally, speed, ids = self.tally, self._options.speed, survey.account_ids
        tally.start()
        started_s = self._clock.monotonic_s()

        async def bill(item: Bill) -> None:
            due_s = None
            if speed is not None:
                due_s = started_s + item.offset_s / speed
                wait_s = due_s - self._clock.monotonic_s()
                if wait_s > 0:
                    await self._clock.sleep(wait_s)
                self._latest_s = max(self._latest_s, -wait_s)
            key = survey.consumption_key(item.line)
            account_id = ids[item.account]
            if self._options.hold and item.context_cost:
                await tally.hold_and_capture(
                    client, account_id, item.cost, held=item.context_cost,
                    keys=(survey.hold_key(item.line), key), due_s=due_s,
                )  # fmt: skip
                return
            await tally.consume(client, account_id, item.cost, key=key, due_s=due_s)

        def done() -> int:
            return tally.requests

        async with self._screen.progress("billing", total=survey.billable, done=done):
            try:
                bills = self._bills(file, survey)
                await run_closed_loop(bills, bill, workers=self._options.connections)
            finally:
                tally.stop()

    def _bills(self, file: BinaryFile, survey: Survey) -> Iterator[Bill]:
        first: datetime | None = None
        for entry in price_rows(file, survey.terms):
            if _identity_of(file) != self._identity:
                raise TraceUnbillable(problem=f"{self._options.trace} changed while it was billed")
            if isinstance(entry, BadLine):
                continue
            row, cost = entry
            first = first or row.at
            if cost:
                offset_s = (row.at - first).total_seconds()
                account = survey.terms.account_of(row.line)
                context_cost = row.context_tokens * survey.terms.price_context
                yield Bill(row.line, account, cost, offset_s, context_cost)

    async def _audit(self, client: CreditsClient, survey: Survey) -> Audit:
        auditor, ids = Auditor(client), survey.account_ids
        async with self._screen.progress("auditing", total=len(ids), done=lambda: auditor.done):
            return await auditor.audit(ids)

    def _is_accounted(self, audit: Audit) -> bool:
        return self.tally.charged_units + self.tally.replayed_units <= audit.consumed

    def _report(self, survey: Survey, audit: Audit) -> None:
        if self._screen.as_json:
            document = {
                "trace": str(self._options.trace),
                "sha256": survey.digest,
                "rows": survey.rows,
                "free": survey.free,
                "skipped": survey.bad_count,
                "skipped_lines": [
                    {"line": each.line, "problem": each.problem} for each in survey.bad
                ],
                "accounts": survey.account_ids,
                **tally_document(self.tally),
                "audit": audit_document(audit),
            }
            self._screen.json(document)
            return
        facts = [
            ("lines", f"{survey.rows:,} rows, {survey.free:,} free, {survey.bad_count:,} skipped"),
            *tally_facts(self.tally),
            *audit_facts(audit),
            ("accounts", f"{survey.account_ids[0]} to {survey.account_ids[-1]}"),
        ]
        if self._options.speed is not None:
            facts.insert(2, ("schedule", f"at most {self._latest_s:.2f} s behind"))
        self._screen.facts(f"Replay of {self._options.trace.name}", facts)


def _identity_of(file: BinaryFile) -> tuple[int, int]:
    state = os.fstat(file.fileno())
    return state.st_size, state.st_mtime_ns
