"""Verifies the ledger where it stands: reads stretches of accounts and hands them to the judges.

What is right and wrong is decided in `verification.py` and `chain.py`, and by the queries that
compare holds and refunds with their transactions. Heads and rows of a stretch come from one
snapshot; stretches need not share theirs.
"""

import asyncio
import re
from collections.abc import Sequence

from tollkeeper.credits.errors import AccountNotFound, VerificationRunning
from tollkeeper.credits.model import Account, Fault, FaultKind, Verification
from tollkeeper.credits.requests import invalid
from tollkeeper.credits.verification import Findings, StretchVerifier
from tollkeeper.credits.verification_store import (
    END,
    START,
    Place,
    Stretch,
    VerificationStore,
    WrongRow,
)
from tollkeeper.database.driver import Connection
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.ids import AccountId, TenantId, shard_of

STRETCH_ACCOUNTS = 500
"""Most accounts read in one unit of work while verifying."""

STRETCH_TRANSACTIONS = 50_000
"""A stretch ends behind the account with which it has this many transactions."""

SLICE_TRANSACTIONS = 100_000
"""A verification pauses at the first end of a stretch behind this many transactions."""

_CURSOR = re.compile(r"(-?\d{1,5})/([^\0]*)", re.ASCII | re.DOTALL)


class LedgerVerifier:
    """Checks chains, balances, holds, refunds and partitions; one verification at a time."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._store = VerificationStore()
        self._running = asyncio.Lock()

    async def verify(
        self, account_id: AccountId | None, tenant_id: TenantId | None, *, after: str | None
    ) -> Verification:
        """Check one account, or all behind the cursor `after`; see `CreditsService.verify`."""
        if self._running.locked():
            raise VerificationRunning
        async with self._running, self._pool.connection() as connection:
            if account_id is not None:
                return await self._one(connection, account_id, tenant_id)
            return await self._slice(connection, tenant_id, after)

    async def _one(
        self, connection: Connection, account_id: AccountId, tenant_id: TenantId | None
    ) -> Verification:
        findings = Findings()
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            stretch = Stretch.of((shard_of(account_id), account_id))
            accounts = await self._store.accounts_of(connection, stretch, tenant_id, 1)
            if not accounts:
                raise AccountNotFound(account_id=account_id)
            await self._store.take_time(connection)
            await self._check(connection, stretch, accounts, findings)
        return findings.verification(None)

    async def _slice(
        self, connection: Connection, tenant_id: TenantId | None, after: str | None
    ) -> Verification:
        findings = Findings()
        place = START if after is None else place_at(after)
        while findings.transactions < SLICE_TRANSACTIONS:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                await self._store.take_time(connection)
                page = await self._store.accounts_of(
                    connection, Stretch.between(place, END), tenant_id, STRETCH_ACCOUNTS
                )
                accounts = _first_of(page)
                if tenant_id is None:
                    is_last = len(page) < STRETCH_ACCOUNTS and len(accounts) == len(page)
                    upto = END if is_last else _place_of(accounts[-1])
                    await self._check(connection, Stretch.between(place, upto), accounts, findings)
                else:
                    is_last = not accounts
                    for account in accounts:
                        stretch = Stretch.of(_place_of(account))
                        await self._check(connection, stretch, (account,), findings)
            place = END if is_last else _place_of(accounts[-1])
            if is_last:
                break
        if any(fault.fault is FaultKind.SEQUENCE for fault in findings.faults):
            findings.report(await self._missing_partitions(connection))
        if place is END and tenant_id is None:
            findings.report(await self._broken_seals(connection))
        return findings.verification(None if place is END else cursor_of(place))

    async def _check(
        self,
        connection: Connection,
        stretch: Stretch,
        accounts: Sequence[Account],
        findings: Findings,
    ) -> None:
        verifier = StretchVerifier(accounts, findings)
        await self._store.chains(connection, stretch, verifier.feed)
        verifier.finish()
        if verifier.has_side_rows or await self._store.has_side_rows(connection, stretch):
            await self._check_side_rows(connection, stretch, findings)

    async def _check_side_rows(
        self, connection: Connection, stretch: Stretch, findings: Findings
    ) -> None:
        """Check that holds and refunds are what the transactions say of them."""
        store = self._store
        holds = await store.wrong_holds(connection, stretch, findings.room)
        findings.report([_hold_fault(wrong) for wrong in holds])
        expiries = await store.wrong_expiries(connection, stretch, findings.room)
        findings.report(
            [
                Fault(
                    account_id=account_id, sequence=0, fault=FaultKind.HOLD,
                    detail="a hold expires before the account expects it",
                )
                for account_id in expiries
            ]
        )  # fmt: skip
        refunds = await store.wrong_refunds(connection, stretch, findings.room)
        findings.report([_refund_fault(wrong) for wrong in refunds])

    async def _missing_partitions(self, connection: Connection) -> list[Fault]:
        """Say where rows that are missing may have been; no partition is no fault of its own.

        A ledger that nobody used for a year, or whose clock was wrong once, has gaps as well.
        """
        return [
            Fault(
                account_id=None, sequence=0, fault=FaultKind.PARTITION,
                detail=f"no partition has the transactions from {gap_from} to {gap_to}",
            )
            for gap_from, gap_to in await self._store.partition_gaps(connection)
        ]  # fmt: skip

    async def _broken_seals(self, connection: Connection) -> list[Fault]:
        """Say which archived partitions the archivist found changed: it reads them whole."""
        return [
            Fault(
                account_id=None, sequence=0, fault=FaultKind.PARTITION,
                detail=f"archived partition {partition}: {problem}",
            )
            for partition, problem in await self._store.broken_seals(connection)
        ]  # fmt: skip


def _first_of(page: Sequence[Account]) -> Sequence[Account]:
    """Return the first accounts of a page, as many as one stretch may have transactions."""
    transactions = 0
    for count, account in enumerate(page, start=1):
        transactions += max(0, account.version)
        if transactions >= STRETCH_TRANSACTIONS:
            return page[:count]
    return page


def cursor_of(place: Place) -> str:
    """Return the cursor behind which a walk goes on."""
    return f"{place[0]}/{place[1]}"


def place_at(cursor: str) -> Place:
    """Return the place that a cursor names: no account need be there, nor its shard be right.

    Raises:
        InvalidRequest: it is none that `next` had.
    """
    found = _CURSOR.fullmatch(cursor)
    if found is None or not START[0] < int(found[1]) < END[0]:
        raise invalid("after", "is not the `next` of a verification")
    return (int(found[1]), found[2])


def _place_of(account: Account) -> Place:
    return (account.shard, account.account_id)


def _hold_fault(wrong: WrongRow) -> Fault:
    if wrong.is_beyond:
        detail = f"the account's transactions take more of hold {wrong.row_id} than it allows"
    else:
        detail = f"hold {wrong.row_id} is not what the account's transactions say"
    return _fault_about(wrong, FaultKind.HOLD, detail)


def _refund_fault(wrong: WrongRow) -> Fault:
    if wrong.is_beyond:
        detail = f"the account's transactions give back more of {wrong.row_id} than it took"
    else:
        detail = f"what was refunded of {wrong.row_id} is not what the account's transactions say"
    return _fault_about(wrong, FaultKind.REFUND, detail)


def _fault_about(wrong: WrongRow, kind: FaultKind, detail: str) -> Fault:
    return Fault(
        account_id=wrong.account_id, sequence=0, fault=kind, detail=detail, about=wrong.row_id
    )
