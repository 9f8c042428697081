"""What the callers ask for: nine consumptions to one top-up, on accounts chosen at random."""

import random
from collections.abc import Sequence
from datetime import UTC, datetime

from tollkeeper.credits import requests
from tollkeeper.credits.engine import Engine
from tollkeeper.credits.model import Kind, Movement, Opened, Operation, Posted
from tollkeeper.kernel.ids import entropy_in_blocks, mint_key, system_entropy

FIRST_BALANCE_MINOR = 10**12
"""Enough that nobody is refused while rates are measured."""

TOPUP_SHARE = 0.1
MOST_AMOUNT_MINOR = 1_000
OPEN_TOGETHER = 1_000
"""Accounts opened in one call while preparing."""


class Workload:
    """Draws operations; counts what they move, so that the end can be checked to the unit."""

    def __init__(self, accounts: Sequence[str], *, seed: int) -> None:
        self._accounts = accounts
        self._random = random.Random(seed)
        self._entropy = entropy_in_blocks()  # as the service draws it

    def movement(self) -> Movement:
        """Return the next operation, with a fresh idempotency key."""
        draw = self._random.random()
        return requests.movement(
            kind=Kind.TOPUP if draw < TOPUP_SHARE else Kind.CONSUME,
            account_id=self._accounts[int(self._random.random() * len(self._accounts))],
            amount=1 + int(draw * 1e6) % MOST_AMOUNT_MINOR,
            key=mint_key(datetime.now(UTC), self._entropy()),
            entropy=self._entropy(),
        )


def account_names(count: int) -> list[str]:
    """Return the ids of the accounts of a benchmark."""
    return [f"account-{number:06d}" for number in range(count)]


async def open_accounts(engine: Engine, names: Sequence[str], balance: int) -> None:
    """Open accounts and top each up once."""
    for start in range(0, len(names), OPEN_TOGETHER):
        operations: list[Operation] = []
        for name in names[start : start + OPEN_TOGETHER]:
            operations.append(requests.open_account(name, "tenant"))
            operations.append(
                requests.movement(
                    kind=Kind.TOPUP,
                    account_id=name,
                    amount=balance,
                    key="first",
                    entropy=system_entropy(),
                )
            )
        for result in await engine.execute(operations):
            assert isinstance(result, Opened | Posted), result
