"""`tollkeeper demo`: starts everything, bills made-up LLM traffic, runs an experiment; over HTTP.

Not a benchmark: the load generator, the service and PostgreSQL share this machine, and the numbers
are what they are. The workload comes from a seed, so every demo bills the same requests, on
accounts of its own.
"""

import asyncio
import random  # noqa: TID251  # seeded below: the same workload every time
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tollkeeper.client.credits import CreditsClient
from tollkeeper.client.load import Audit, Auditor, Tally, run_batches, run_closed_loop
from tollkeeper.client.messages import Operation
from tollkeeper.client.shadow import ShadowClient
from tollkeeper.client.summary import audit_document, audit_facts, tally_document, tally_facts
from tollkeeper.client.terminal import Screen
from tollkeeper.config import Settings
from tollkeeper.kernel.clock import Clock
from tollkeeper.trial import Trial, run_trial
from tollkeeper.up import Stack, local_stack

SEED = 0
REQUESTS = 20_000
CONNECTIONS = 100
"""Callers at a time, as SPEC C9 asks."""

TENANTS = ("acme", "borealis", "cobalt", "dynamo", "ember", "fjord", "granite", "harbour")
ACCOUNTS_PER_TENANT = 25
HOT_SHARE = 0.15
"""Part of all requests that one single account makes."""

DRY_EVERY = 10
"""Every so many accounts one has paid for `DRY_SHARE` of what it will ask for."""

DRY_SHARE = 0.6
RETRY_SHARE = 0.02
"""Part of the requests whose caller does not see the answer and sends them again."""

CONTEXT_MEDIAN, CONTEXT_SPREAD = 1_500.0, 1.1
GENERATED_MEDIAN, GENERATED_SPREAD = 120.0, 0.9
"""Tokens per request are log-normal, as in published traces of LLM inference."""

PRICE_CONTEXT, PRICE_GENERATED = 1, 3
"""Minor units per token."""


class Usage(NamedTuple):
    """One request to be billed; a `retry` repeats the request before it, key and all."""

    account: int
    cost: int
    is_retry: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Who pays and what is asked for."""

    account_ids: tuple[str, ...]
    topups: tuple[int, ...]
    usage: tuple[Usage, ...]


def generate_workload(generator: random.Random, *, requests: int, run: str) -> Workload:
    """Make up requests, and top-ups that suffice for most accounts and not for all."""
    accounts = len(TENANTS) * ACCOUNTS_PER_TENANT
    usage: list[Usage] = []
    demand: Counter[int] = Counter()
    while len(usage) < requests:
        account = 0 if generator.random() < HOT_SHARE else generator.randrange(accounts)
        context = round(CONTEXT_MEDIAN * generator.lognormvariate(0.0, CONTEXT_SPREAD))
        generated = round(GENERATED_MEDIAN * generator.lognormvariate(0.0, GENERATED_SPREAD))
        cost = 1 + context * PRICE_CONTEXT + generated * PRICE_GENERATED
        demand[account] += cost
        usage.append(Usage(account, cost, is_retry=False))
        if generator.random() < RETRY_SHARE:
            usage.append(Usage(account, cost, is_retry=True))
    return Workload(
        account_ids=tuple(
            f"{TENANTS[number % len(TENANTS)]}-{run}-{number:03}" for number in range(accounts)
        ),
        topups=tuple(
            1 + round(demand[number] * (DRY_SHARE if number % DRY_EVERY == 1 else 1.1))
            for number in range(accounts)
        ),
        usage=tuple(usage[:requests]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What to show; `run` names this demo's accounts, `leave` ends it after the summary."""

    run: str
    requests: int = REQUESTS
    leave: bool = False


class Demo:
    """One demo, from nothing to the summary and, unless it is to leave, until Ctrl-C."""

    def __init__(
        self,
        options: DemoOptions,
        settings: Settings,
        connect: Callable[[str, str, int], CreditsClient],
        connect_shadow: Callable[[str, str, int], ShadowClient],
        *,
        screen: Screen,
        clock: Clock,
    ) -> None:
        self._options = options
        self._settings = settings
        self._connect = connect
        self._connect_shadow = connect_shadow
        self._screen = screen
        self._clock = clock
        self._is_showing = False
        self._is_good = False

    async def run(self) -> bool:
        """Run it; tell whether every unit is accounted for and the experiment ended as it must."""
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, task.cancel)
        try:
            async with local_stack(self._settings, say=self._screen.remark) as stack:
                self._is_good = await self._show(stack)
                if not self._options.leave:
                    self._is_showing = True
                    await asyncio.Event().wait()
        except asyncio.CancelledError:
            if not self._is_showing:
                raise KeyboardInterrupt from None
        return self._is_good

    async def _show(self, stack: Stack) -> bool:
        workload = generate_workload(
            random.Random(SEED),  # noqa: S311  # a workload, not a secret
            requests=self._options.requests,
            run=self._options.run,
        )
        async with self._connect(stack.url, stack.api_key, CONNECTIONS) as client:
            await self._fund(client, workload)
            tally = await self._consume(client, workload)
            audit = await self._audit(client, workload)
        trial = await self._experiment(stack)
        self._report(tally, audit, trial, stack)
        is_billed = audit.is_clean and audit.consumed == tally.charged_units and not tally.failed
        return is_billed and (trial is None or trial.is_good)

    async def _experiment(self, stack: Stack) -> Trial | None:
        """Run one experiment to its end; None: experiments are not served here."""
        if stack.shadow_url is None:
            self._screen.remark("no experiment: TOLLKEEPER_SHADOW_DSN is not set")
            return None
        generator = random.Random(SEED)  # noqa: S311  # a workload, not a secret
        async with self._connect_shadow(stack.shadow_url, stack.api_key, 1) as client:
            return await run_trial(
                client, generator, run=self._options.run, screen=self._screen, clock=self._clock
            )

    async def _fund(self, client: CreditsClient, workload: Workload) -> None:
        ids = workload.account_ids
        self._screen.remark(f"opening and topping up {len(ids)} accounts")
        opens = [
            Operation(op="open", account_id=each, tenant_id=each.partition("-")[0]) for each in ids
        ]
        topups = [
            Operation(op="topup", account_id=each, amount=amount)
            for each, amount in zip(ids, workload.topups, strict=True)
        ]
        await run_batches(client, opens)
        await run_batches(client, topups)

    async def _consume(self, client: CreditsClient, workload: Workload) -> Tally:
        tally = Tally(self._clock)

        async def bill(job: tuple[str, int, str]) -> None:
            account_id, cost, key = job
            await tally.consume(client, account_id, cost, key=key)

        def done() -> int:
            return tally.requests

        async with self._screen.progress("billing", total=len(workload.usage), done=done):
            tally.start()
            await run_closed_loop(_keyed(client, workload), bill, workers=CONNECTIONS)
            tally.stop()
        return tally

    async def _audit(self, client: CreditsClient, workload: Workload) -> Audit:
        auditor, ids = Auditor(client), workload.account_ids
        async with self._screen.progress("auditing", total=len(ids), done=lambda: auditor.done):
            return await auditor.audit(ids)

    def _report(self, tally: Tally, audit: Audit, trial: Trial | None, stack: Stack) -> None:
        if self._screen.as_json:
            self._screen.json(
                {
                    "url": stack.url, "shadow_url": stack.shadow_url, **tally_document(tally),
                    "audit": audit_document(audit),
                    "experiment": None if trial is None else trial.document(),
                }
            )  # fmt: skip
            return
        tenants, accounts = len(TENANTS), len(TENANTS) * ACCOUNTS_PER_TENANT
        title = f"Billed over HTTP: {CONNECTIONS} callers, {accounts} accounts of {tenants} tenants"
        self._screen.facts(title, (*tally_facts(tally), *audit_facts(audit)))
        if trial is not None:
            self._screen.facts(f"Experiment {trial.experiment_id}, run over HTTP", trial.facts())
        if not self._options.leave:
            self._invite(trial, stack)

    def _invite(self, trial: Trial | None, stack: Stack) -> None:
        """Show what there is to try while everything stays up."""
        key = _short(stack.data / "dev.key")
        hot = f"{TENANTS[0]}-{self._options.run}-000"
        bearer = f'-H "Authorization: Bearer $(cat {key})"'
        self._screen.addresses(
            "Tollkeeper is up, until Ctrl-C",
            (
                ("API", f"{stack.url}/v1"),
                *((("", f"{stack.shadow_url}/v1"),) if stack.shadow_url is not None else ()),
                ("docs", f"{stack.url}/schema"),
                ("key", stack.api_key),
                ("psql", stack.psql()),
                ("try", f"curl {bearer} {stack.url}/v1/accounts/{hot}"),
                ("", f"{_command(stack.data)} credits history {hot} --limit 5"),
                *_experiment_commands(trial, _command(stack.data)),
            ),
        )


def _keyed(client: CreditsClient, workload: Workload) -> Iterator[tuple[str, int, str]]:
    key = ""
    for usage in workload.usage:
        if not usage.is_retry:
            key = client.mint_key()
        yield workload.account_ids[usage.account], usage.cost, key


def _experiment_commands(trial: Trial | None, command: str) -> list[tuple[str, str]]:
    if trial is None:
        return []
    shown = [("", f"{command} shadow analyse {trial.experiment_id}")]
    if trial.deployment is not None:
        shown.append(("", f"{command} shadow explain {trial.deployment.deployment_id}"))
    return shown


def _command(data: Path) -> str:
    """Return how this program was called, and what makes it find what runs in `data`."""
    program = Path(sys.argv[0]).absolute()
    called = str(_short(program)) if program.name == "tollkeeper" else "python -m tollkeeper"
    shown = _short(data)
    return called if str(shown) == ".tollkeeper" else f"TOLLKEEPER_DATA={shown} {called}"


def _short(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
