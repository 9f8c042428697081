"""Judges a stretch of the ledger: accounts in key order, and the rows of their chains in order.

Pure: rows come as the database sends them, findings go out; memory does not grow with the chains.
What the rows say of each other is judged in `chain.py`; here it is found whose they are, and which
accounts must have holds and refunds compared besides.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from tollkeeper.credits.chain import AccountVerifier
from tollkeeper.credits.chain_rows import ChainRows
from tollkeeper.credits.model import Account, Fault, FaultKind, Kind, Point, Verification
from tollkeeper.kernel.ids import AccountId

FAULTS_LIMIT: Final = 1_000
"""Faults reported by one verification; `more_faults` says that there are others."""

_KINDS: Final[Mapping[bytes, Kind]] = {kind.value.encode(): kind for kind in Kind}


@dataclass(slots=True)
class Findings:
    """What a verification has seen so far; sums are minor units over the accounts checked."""

    accounts: int = 0
    transactions: int = 0
    topped_up: int = 0
    consumed: int = 0
    balance: int = 0
    faults: list[Fault] = field(default_factory=list)

    @property
    def room(self) -> int:
        """How many more faults are worth finding: one above the limit says that there are more."""
        return FAULTS_LIMIT + 1 - len(self.faults)

    def report(self, faults: Sequence[Fault]) -> None:
        """Add faults, as far as they are still listed."""
        self.faults.extend(faults[: self.room])

    def verification(self, following: str | None) -> Verification:
        """Return the answer; the next slice begins behind the account `following`."""
        return Verification(
            accounts=self.accounts, transactions=self.transactions, topped_up=self.topped_up,
            consumed=self.consumed, balance=self.balance,
            faults=tuple(self.faults[:FAULTS_LIMIT]),
            more_faults=len(self.faults) > FAULTS_LIMIT, next=following,
        )  # fmt: skip


class StretchVerifier:
    """Checks accounts whose rows arrive in one stream: `feed` its pieces, then `finish`.

    `accounts` are sorted by shard and id, as the rows are. `has_side_rows` says that holds and
    refunds of the stretch must be compared with its transactions.
    """

    def __init__(self, accounts: Iterable[Account], findings: Findings) -> None:
        self._ahead = iter(accounts)
        self._next = next(self._ahead, None)
        self._findings = findings
        self._rows = ChainRows()
        self._shard = 0
        self._account_id: bytes | None = None
        self._verifier: AccountVerifier | None = None
        self._account: Account | None = None
        self._stray: _Stray | None = None
        self.has_side_rows = False

    def feed(self, piece: bytes | bytearray) -> None:
        """Check the rows that `piece` completes.

        Raises:
            ValueError: these are not rows of chains.
        """
        kinds, transactions = _KINDS, 0
        for (
            shard, account_id, stored, sequence, kind, amount, balance, reserved, freed, fields,
        ) in self._rows.feed(piece):  # fmt: skip
            if account_id != self._account_id or shard != self._shard:
                self._turn_to(shard, account_id, sequence)
            transactions += 1
            if self._verifier is None:
                assert self._stray is not None
                self._stray.rows += 1
            else:
                self._verifier.check(
                    stored, sequence, kinds.get(kind), amount, balance, reserved, freed, fields
                )
        self._findings.transactions += transactions

    def finish(self) -> None:
        """Check what is behind the last row, too.

        Raises:
            ValueError: the stream of rows was cut.
        """
        self._rows.finish()
        self._end()
        while self._next is not None:
            self._begin(self._next)
            self._end()

    def _turn_to(self, shard: int, account_id: bytes, sequence: int) -> None:
        """End the account whose rows were read; begin this one, past those without rows."""
        self._end()
        self._shard, self._account_id = key = (shard, account_id)
        while self._next is not None and _key_of(self._next) < key:
            self._begin(self._next)
            self._end()
        if self._next is not None and _key_of(self._next) == key:
            self._begin(self._next)
        else:
            self._stray = _Stray(account_id.decode(errors="replace"), sequence)

    def _begin(self, account: Account) -> None:
        self._account, self._verifier = account, AccountVerifier(account)
        self._next = next(self._ahead, None)

    def _end(self) -> None:
        findings, stray = self._findings, self._stray
        if stray is not None:
            self._stray = None
            findings.report((stray.fault,))
        if self._account is None or self._verifier is None:
            return
        verifier = self._verifier
        verifier.finish()
        findings.accounts += 1
        findings.topped_up += verifier.topped_up
        findings.consumed += verifier.consumed
        findings.balance += self._account.balance
        findings.report(verifier.faults)
        self.has_side_rows = self.has_side_rows or verifier.has_side_rows
        self._account = self._verifier = None


class PointsVerifier:
    """Checks accounts from where each was last seen; the rows of all of them come in one stream."""

    def __init__(self, starts: Iterable[tuple[Account, Point | None]]) -> None:
        self._verifiers = {
            _key_of(account): AccountVerifier(account, point) for account, point in starts
        }
        self._counts = dict.fromkeys(self._verifiers, 0)
        self._rows = ChainRows()

    def feed(self, piece: bytes | bytearray) -> None:
        """Check the rows that `piece` completes.

        Raises:
            KeyError: a row of another account.
            ValueError: these are not rows of chains.
        """
        verifiers, counts = self._verifiers, self._counts
        for (
            shard, account_id, stored, sequence, kind, amount, balance, reserved, freed, fields,
        ) in self._rows.feed(piece):  # fmt: skip
            key = (shard, account_id)
            counts[key] += 1
            verifiers[key].check(
                stored, sequence, _KINDS.get(kind), amount, balance, reserved, freed, fields
            )

    def finish(self) -> None:
        """Demand that all rows have come.

        Raises:
            ValueError: the stream of rows was cut.
        """
        self._rows.finish()

    def of(self, account: Account) -> tuple[AccountVerifier, int]:
        """Return the verifier of one account, and how many rows it was given."""
        key = _key_of(account)
        return self._verifiers[key], self._counts[key]


def _key_of(account: Account) -> tuple[int, bytes]:
    return (account.shard, account.account_id.encode())


@dataclass(slots=True)
class _Stray:
    """Transactions without an account."""

    account_id: str
    sequence: int
    rows: int = 0

    @property
    def fault(self) -> Fault:
        return Fault(
            account_id=AccountId(self.account_id), sequence=self.sequence, fault=FaultKind.ACCOUNT,
            detail=f"{self.rows} transactions from here on have no account",
        )  # fmt: skip
