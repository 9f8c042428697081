"""Customers who move money while everything dies, remember what they were told, and settle up.

A customer asks with a key, and asks again with the same key when no answer came; now and then it
gives up instead, or asks once more for what was answered already. `Books.settle` compares what
everyone was told with what the ledger's tables say.
"""

import asyncio
import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from tollkeeper.client.credits import CreditsClient
from tollkeeper.client.errors import AnswerMissing, CallFailed, CallRefused, ServiceUnreachable
from tollkeeper.client.messages import Receipt
from tollkeeper.database.driver import Connection, Row
from tollkeeper.kernel.backoff import Backoff

NO_RETRIES = Backoff(retries=0)
"""The customers ask again by themselves, and write down that they did."""

PAUSE_S = 0.02
"""Between two attempts to get an answer."""

ANSWER_TIMEOUT_S = 20.0
"""An answer that is not there by then counts as lost."""

ROWS = """
SELECT
    t.transaction_id::text AS transaction_id, t.account_id, t.kind, t.amount, t.balance, t.reserved,
    t.sequence, encode(t.hash, 'hex') AS hash, t.reference_id, k.key_hash
FROM credit_transactions AS t
LEFT JOIN idempotency_keys AS k
    ON k.account_id = t.account_id AND k.sequence = t.sequence AND k.created_at = t.created_at
ORDER BY t.account_id, t.sequence
"""
_SIGNS = {"topup": 1, "consume": -1, "capture": -1, "refund": 1}

Call = Callable[[CreditsClient, str], Awaitable[Receipt]]


@dataclass(slots=True)
class Asked:
    """One request and its key; without a receipt or a refusal nobody knows what became of it."""

    account_id: str
    key: str
    call: Call
    receipt: Receipt | None = None
    refusal: CallRefused | None = None
    attempts: int = 0

    @property
    def is_answered(self) -> bool:
        return self.receipt is not None or self.refusal is not None


@dataclass(slots=True)
class Books:
    """What customers asked for, and what they were told."""

    asked: list[Asked] = field(default_factory=list)
    answered: int = 0
    unknown: int = 0
    repeated: int = 0
    progress: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def attempt(self, client: CreditsClient, asked: Asked) -> bool:
        """Ask, and return whether there was an answer; any but "not now" must be the ledger's."""
        asked.attempts += 1
        try:
            asked.receipt = await asked.call(client, asked.key)
        except (AnswerMissing, ServiceUnreachable):
            self.unknown += 1
            return False
        except CallRefused as refusal:
            asked.refusal = refusal
        except CallFailed as failure:
            if failure.status != 503:
                raise
            self.unknown += 1
            return False
        self.answered += 1
        async with self.progress:
            self.progress.notify_all()
        return True

    async def wait_for_answers(self, count: int) -> None:
        """Wait until so many more requests were answered."""
        enough = self.answered + count
        async with self.progress:
            await self.progress.wait_for(lambda: self.answered >= enough)

    def settle(self, rows: Sequence[Row]) -> None:
        """Compare with the ledger: what was answered is there once, what was not at most once."""
        by_key: dict[tuple[str, bytes], list[Row]] = defaultdict(list)
        balances: Counter[str] = Counter()
        for row in rows:
            balances[row["account_id"]] += _SIGNS.get(row["kind"], 0) * row["amount"]
            assert row["balance"] == balances[row["account_id"]], dict(row.items())
            assert 0 <= row["reserved"] <= row["balance"], dict(row.items())
            if row["kind"] != "expire":
                by_key[row["account_id"], row["key_hash"]].append(row)
        for asked in self.asked:
            found = by_key.pop((asked.account_id, _digest(asked.key)), [])
            if asked.refusal is not None:
                assert [] == found, asked
            elif asked.receipt is None:
                assert len(found) <= 1, asked
            else:
                assert [_told(asked.receipt)] == [_written(row) for row in found], asked
        assert {} == by_key, "nobody asked for these"
        expired = [row["reference_id"] for row in rows if row["kind"] == "expire"]
        assert len(set(expired)) == len(expired)
        assert len({row["transaction_id"] for row in rows}) == len(rows)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _told(receipt: Receipt) -> tuple[object, ...]:
    said = receipt.transaction
    return (
        said.transaction_id, said.kind, said.amount, said.balance, said.reserved, said.sequence,
        said.hash,
    )  # fmt: skip


def _written(row: Row) -> tuple[object, ...]:
    names = ("transaction_id", "kind", "amount", "balance", "reserved", "sequence", "hash")
    return tuple(row[name] for name in names)


async def rows_of(connection: Connection) -> Sequence[Row]:
    """Return every transaction of a ledger with the key that made it."""
    return await connection.fetch(ROWS)


class Customer:
    """Moves the money of one account, which others may move, too."""

    def __init__(
        self, client: CreditsClient, books: Books, account_id: str, *, dice: random.Random
    ) -> None:
        self._client = client
        self._books = books
        self._account_id = account_id
        self._dice = dice
        self._holds: list[str] = []
        self._takings: list[str] = []
        self._settled: list[Asked] = []

    async def live(self, leaving: asyncio.Event) -> None:
        """Ask for one thing after the other until it is time to leave."""
        while not leaving.is_set():
            if self._settled and self._dice.random() < 0.1:
                await self._ask_once_more(self._dice.choice(self._settled))
                continue
            asked = Asked(self._account_id, self._client.mint_key(), self._next_call())
            self._books.asked.append(asked)
            while not await self._books.attempt(self._client, asked):
                if self._dice.random() < 0.05:
                    break
                await asyncio.sleep(PAUSE_S)
            else:
                self._remember(asked)

    async def _ask_once_more(self, settled: Asked) -> None:
        again = Asked(settled.account_id, settled.key, settled.call)
        if await self._books.attempt(self._client, again):
            assert settled.receipt is not None
            assert again.receipt == Receipt(settled.receipt.transaction, replayed=True), again
            self._books.repeated += 1

    def _remember(self, asked: Asked) -> None:
        if asked.receipt is None:
            return
        self._settled.append(asked)
        transaction = asked.receipt.transaction
        if transaction.kind == "hold":
            self._holds.append(transaction.transaction_id)
        elif transaction.kind in {"consume", "capture"}:
            self._takings.append(transaction.transaction_id)

    def _next_call(self) -> Call:
        dice, account_id = self._dice, self._account_id
        amount = dice.randint(1, 30)
        kinds = ["topup", "consume", "up to", "hold"]
        kinds += ["capture", "capture", "final", "release", "extend"] if self._holds else []
        kinds += ["refund"] if self._takings else []
        hold_id = self._holds[-dice.randint(1, min(3, len(self._holds)))] if self._holds else ""
        taking = dice.choice(self._takings) if self._takings else ""
        lasting_s = dice.choice((1, 2, 600))
        calls: dict[str, Call] = {
            "topup": lambda c, key: c.topup(account_id, amount, key=key),
            "consume": lambda c, key: c.consume(account_id, amount, key=key),
            "up to": lambda c, key: c.consume(account_id, amount, up_to=True, key=key),
            "hold": lambda c, key: c.hold(
                account_id, amount, expires_in_s=lasting_s, allowance=5, key=key
            ),
            "capture": lambda c, key: c.capture(hold_id, 1 + amount // 4, key=key),
            "final": lambda c, key: c.capture(hold_id, 1 + amount // 4, final=True, key=key),
            "release": lambda c, key: c.release(hold_id, key=key),
            "extend": lambda c, key: c.extend(hold_id, amount=amount, key=key),
            "refund": lambda c, key: c.refund(taking, 1 + amount // 4, key=key),
        }
        return calls[dice.choice(kinds)]


class Cashier:
    """Opens accounts before the load and clears up after it, as often as it takes."""

    def __init__(self, client: CreditsClient, books: Books) -> None:
        self._client = client
        self._books = books

    async def open(self, account_id: str, funds: int) -> None:
        """Open an account and fund it, as soon as a service is there."""
        while True:
            with suppress(AnswerMissing, ServiceUnreachable):
                await self._client.open_account(account_id, "acme")
                break
            await asyncio.sleep(PAUSE_S)
        asked = Asked(
            account_id, self._client.mint_key(), lambda c, key: c.topup(account_id, funds, key=key)
        )
        self._books.asked.append(asked)
        await self._insist(asked)

    async def ask_again_for_half_of_what_is_unknown(self) -> None:
        """Ask until there is an answer for every other request that has none."""
        unknown = [each for each in self._books.asked if not each.is_answered]
        for asked in unknown[::2]:
            await self._insist(asked)

    async def _insist(self, asked: Asked) -> None:
        while not await self._books.attempt(self._client, asked):
            await asyncio.sleep(PAUSE_S)
