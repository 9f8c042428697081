"""The ledger's rows: runs `queries.sql` on a given connection, rows to values and back.

Decides nothing. A batch travels as arrays of rows (composite types of the schema), not as one array
for each column: in batches of 28 an operation then costs Python 28.6 µs instead of 32.0 µs, and
PostgreSQL 30.1 µs instead of 33.5 µs.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

import msgspec

from tollkeeper.credits.alert_store import (
    AlertStore,
    low_accounts,
    rows_of,
    watched_account_of,
)
from tollkeeper.credits.model import (
    KEY_RETENTION,
    NO_ALERTS,
    Account,
    Capture,
    Expiries,
    Extend,
    Fault,
    Hold,
    HoldOperation,
    HoldState,
    KeyedTransaction,
    Kind,
    Loaded,
    Operation,
    Plan,
    Point,
    Refund,
    Refundable,
    Release,
    Sweep,
    Tail,
    Transaction,
    Unfreeze,
    Write,
)
from tollkeeper.database.driver import Connection, Row
from tollkeeper.database.locks import session_lock
from tollkeeper.database.queries import load_queries
from tollkeeper.database.timeouts import Timeouts
from tollkeeper.kernel.ids import AccountId, TenantId, TransactionId

TIMEOUTS: Final = Timeouts(statement_s=15, lock_s=5, idle_in_transaction_s=15)

SESSION_SETTINGS: Final[Mapping[str, str]] = {
    # The ledger's statements are few, keyed and parametrised by arrays, whose lengths the planner
    # cannot see: generic plans over nested loops are right for every length, and visit rows in the
    # sorted order of the arrays, which is the lock order.
    "plan_cache_mode": "force_generic_plan",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "jit": "off",
    **TIMEOUTS.settings(),
}
"""What a connection of the ledger's pool is opened with."""

_NEEDING_MORE = (Capture, Release, Extend, Refund, Unfreeze, Sweep)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_LAST_MS = (datetime(9999, 12, 31, tzinfo=UTC) - _EPOCH) // _MILLISECOND  # an id has room for more
_KINDS: Final[Mapping[str, Kind]] = {kind.value: kind for kind in Kind}


class LedgerStore:
    """Reads and writes of the ledger; every method is one statement unless it says otherwise."""

    def __init__(self) -> None:
        self._sql = load_queries("tollkeeper.credits")
        self._alerts = AlertStore()

    async def load(
        self, connection: Connection, operations: Sequence[Operation], *, locked: bool = False
    ) -> Loaded:
        """Read what a batch needs in one snapshot, with the database's clock.

        Accounts and known keys take one statement, and a second one for the transactions that
        known keys made, which never change. The thresholds of accounts that are low take another:
        whoever changes them lets the commit miss. Holds and refunds take further statements, inside
        a unit of work of their own; `locked` says that the accounts are locked: nothing can move.
        """
        needs_more = any(isinstance(each, _NEEDING_MORE) for each in operations)
        if not needs_more:
            loaded = await self._load_accounts(connection, operations)
            if not _are_expiries_due(loaded):
                return loaded
        if locked:
            return await self._load_all(connection, operations)
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            return await self._load_all(connection, operations)

    async def _load_accounts(
        self, connection: Connection, operations: Sequence[Operation]
    ) -> Loaded:
        accounts = {operation.account_id: operation.shard for operation in operations}
        writes = [operation for operation in operations if isinstance(operation, Write)]
        rows = await connection.fetch(
            self._sql["load"],
            [(shard, name) for name, shard in accounts.items()],
            [(w.shard, w.account_id, key_tag(w.key_hash), w.key_hash) for w in writes],
            KEY_RETENTION,
        )
        now = rows[0]["created_at"]
        found: dict[AccountId, Account] = {}
        hits: list[Row] = []
        for row in rows[1:]:
            if row["key_hash"] is None:
                account = watched_account_of(row)
                found[account.account_id] = account
            else:
                hits.append(row)
        frozen = {a.account_id: a.shard for a in found.values() if a.frozen_at is not None}
        kept = await self._kept(connection, hits) if hits else {}
        findings = await self._findings(connection, frozen) if frozen else {}
        low = low_accounts(found.values())
        thresholds = await self._alerts.thresholds(connection, low) if low else {}
        return Loaded(now, found, kept, findings=findings, thresholds=thresholds)

    async def add_thresholds(
        self, connection: Connection, loaded: Loaded, accounts: Iterable[AccountId]
    ) -> Loaded:
        """Return what was loaded with the thresholds of more of its accounts."""
        places = [(loaded.accounts[name].shard, name) for name in accounts]
        more = await self._alerts.thresholds(connection, places)
        return msgspec.structs.replace(loaded, thresholds={**loaded.thresholds, **more})

    async def _load_all(self, connection: Connection, operations: Sequence[Operation]) -> Loaded:
        loaded = await self._load_accounts(connection, operations)
        holds = {(o.shard, o.hold_id) for o in operations if isinstance(o, HoldOperation)}
        refunded = {(o.shard, o.refunded_id) for o in operations if isinstance(o, Refund)}
        lifting = {(o.shard, o.account_id) for o in operations if isinstance(o, Unfreeze)}
        due = [
            (account.shard, account.account_id)
            for account in loaded.accounts.values()
            if _is_expiry_due(account, loaded.now) or (account.shard, account.account_id) in lifting
        ]
        return Loaded(
            loaded.now,
            loaded.accounts,
            loaded.kept,
            await self._holds(connection, holds) if holds else {},
            await self._expiries(connection, due, loaded.now) if due else {},
            await self._refundables(connection, refunded) if refunded else {},
            loaded.findings,
            await self._tails(connection, lifting) if lifting else {},
            loaded.thresholds,
        )

    async def _findings(
        self, connection: Connection, accounts: Mapping[AccountId, int]
    ) -> dict[AccountId, tuple[Fault, ...]]:
        places = [(shard, account_id) for account_id, shard in accounts.items()]
        rows = await connection.fetch(self._sql["findings"], places)
        return {AccountId(row["account_id"]): faults_of(row["faults"]) for row in rows}

    async def _tails(
        self, connection: Connection, places: Iterable[tuple[int, AccountId]]
    ) -> dict[AccountId, Tail]:
        rows = await connection.fetch(self._sql["tails"], list(places))
        return {
            AccountId(row["account_id"]): Tail(
                None
                if row["sequence"] is None
                else Point(row["sequence"], row["balance"], row["reserved"], row["hash"]),
                int(row["held"]),
            )
            for row in rows
        }

    async def _holds(
        self, connection: Connection, places: Iterable[tuple[int, TransactionId]]
    ) -> dict[TransactionId, Hold]:
        rows = await connection.fetch(self._sql["holds"], list(places))
        return {hold.hold_id: hold for hold in map(_hold, rows)}

    async def _expiries(
        self, connection: Connection, places: Sequence[tuple[int, AccountId]], now: datetime
    ) -> dict[AccountId, Expiries]:
        """Return the overdue holds of every account in `places`, also where there is none."""
        due: dict[AccountId, list[Hold]] = {account_id: [] for _, account_id in places}
        following: dict[AccountId, datetime] = {}
        for hold in map(_hold, await connection.fetch(self._sql["open_holds"], places, now)):
            if hold.expires_at <= now:
                due[hold.account_id].append(hold)
            else:
                following[hold.account_id] = hold.expires_at
        return {
            account_id: Expiries(holds, following.get(account_id))
            for account_id, holds in due.items()
        }

    async def _refundables(
        self, connection: Connection, places: Iterable[tuple[int, TransactionId]]
    ) -> dict[TransactionId, Refundable]:
        listed = list(places)
        rows = await connection.fetch(
            self._sql["refundables"], listed, [moment_of(identifier) for _, identifier in listed]
        )
        return {
            TransactionId(row["transaction_id"]): Refundable(
                transaction_id=TransactionId(row["transaction_id"]),
                account_id=AccountId(row["account_id"]), shard=row["shard"],
                kind=_KINDS[row["kind"]], taken=row["taken"], refunded=row["refunded"],
            )
            for row in rows
        }  # fmt: skip

    async def _kept(
        self, connection: Connection, hits: Sequence[Row]
    ) -> dict[tuple[AccountId, bytes], Transaction | None]:
        """Return what known keys made, None where it is gone."""
        rows = await connection.fetch(
            self._sql["transactions_by_key"],
            [hit["shard"] for hit in hits],
            [hit["account_id"] for hit in hits],
            [hit["version"] for hit in hits],
            [hit["created_at"] for hit in hits],
        )
        by_place = {(row["account_id"], row["sequence"]): transaction_of(row) for row in rows}
        return {
            (AccountId(hit["account_id"]), hit["key_hash"]): by_place.get(
                (hit["account_id"], hit["version"])
            )
            for hit in hits
        }

    async def lock_accounts(
        self, connection: Connection, accounts: Mapping[AccountId, int]
    ) -> None:
        """Lock `accounts` (id to shard) in sorted order, inside the caller's unit of work."""
        ordered = sorted((shard, account_id) for account_id, shard in accounts.items())
        await connection.fetch(
            self._sql["lock_accounts"],
            [shard for shard, _ in ordered],
            [name for _, name in ordered],
        )

    async def lift(self, connection: Connection, plan: Plan) -> None:
        """Write what `plan` lifts, in the unit of work that locked its accounts; then `commit`."""
        for lifting in plan.lifted:
            await connection.execute(
                self._sql["lift_freeze"],
                _accepted(lifting.keyed),
                plan.now,
                lifting.next_expiry,
                lifting.actor,
            )

    async def commit(self, connection: Connection, plan: Plan) -> frozenset[AccountId]:
        """Write `plan` and return the accounts that landed; the others had moved meanwhile."""
        alerts = rows_of(plan.alerts) if plan.alerts is not NO_ALERTS else ()
        rows = await connection.fetch(
            self._sql["commit_with_alerts"] if alerts else self._sql["commit"],
            [
                (
                    a.shard, a.account_id, expected, a.balance, a.reserved, a.version, a.head_hash,
                    a.next_expiry, a.alert_revision,
                )
                for a, expected in zip(plan.moved, plan.expected, strict=True)
            ],
            [
                (
                    a.shard, a.account_id, a.tenant_id, a.balance, a.reserved, a.version,
                    a.head_hash, a.next_expiry,
                )
                for a in plan.opened
            ],
            [_accepted(keyed) for keyed in plan.transactions],
            plan.now,
            [_written_hold(hold) for hold in plan.holds],
            [
                (r.shard, r.transaction_id, r.account_id, r.taken, r.refunded)
                for r in plan.refunds
            ],
            *alerts,
        )  # fmt: skip
        return frozenset(AccountId(row["account_id"]) for row in rows)

    async def account(
        self, connection: Connection, account_id: AccountId, shard: int
    ) -> Account | None:
        """Return an account as it stands, None when there is none."""
        row = await connection.fetchrow(self._sql["account"], shard, account_id)
        return None if row is None else account_of(row)

    async def history(
        self, connection: Connection, account: Account, *, after: int, limit: int
    ) -> tuple[Transaction, ...]:
        """Return up to `limit` transactions of an account with a sequence above `after`.

        The archive is read only where the live table lacks one of them.
        """
        place = (account.shard, account.account_id, after, limit)
        rows = await connection.fetch(self._sql["history"], *place)
        wanted = min(limit, account.version - after)
        if wanted > 0 and (len(rows) < wanted or rows[-1]["sequence"] != after + len(rows)):
            rows = await connection.fetch(self._sql["whole_history"], *place)
        return tuple(transaction_of(row) for row in rows)

    async def hold(
        self, connection: Connection, hold_id: TransactionId
    ) -> tuple[Hold, TenantId] | None:
        """Return a hold and its account's tenant, None when there is none."""
        row = await connection.fetchrow(self._sql["hold"], hold_id.bytes[-1], hold_id)
        return None if row is None else (_hold(row), TenantId(row["tenant_id"]))

    async def account_holds(
        self, connection: Connection, account: Account, *, after: UUID, limit: int
    ) -> tuple[Hold, ...]:
        """Return up to `limit` open holds of an account with an id above `after`."""
        rows = await connection.fetch(
            self._sql["account_holds"], account.shard, account.account_id, after, limit
        )
        return tuple(_hold(row) for row in rows)

    async def transaction(
        self, connection: Connection, transaction_id: TransactionId
    ) -> tuple[Transaction, TenantId] | None:
        """Return a transaction and its account's tenant, None when there is none."""
        row = await connection.fetchrow(
            self._sql["transaction"], transaction_id.bytes[-1], transaction_id,
            moment_of(transaction_id),
        )  # fmt: skip
        return None if row is None else (transaction_of(row), TenantId(row["tenant_id"]))

    async def due_accounts(self, connection: Connection, limit: int) -> tuple[Sweep, ...]:
        """Return up to `limit` accounts that have holds whose time is over."""
        rows = await connection.fetch(self._sql["due_accounts"], limit)
        return tuple(
            Sweep(account_id=AccountId(row["account_id"]), shard=row["shard"]) for row in rows
        )

    async def create_partitions(
        self, connection: Connection, *, quarters_ahead: int, days_ahead: int
    ) -> int:
        """Make the partitions for now and the time ahead; return how many were missing."""
        made: int = await connection.fetchval(
            self._sql["create_partitions"], quarters_ahead, days_ahead
        )
        return made

    async def partition_ends(self, connection: Connection) -> dict[str, datetime | None]:
        """Return up to when each table has partitions without a gap, None: it has none for now."""
        rows = await connection.fetch(self._sql["partition_ends"])
        return {row["name"]: row["to_time"] for row in rows}

    async def schedulers(self, connection: Connection) -> tuple[str, ...]:
        """Return which extensions that schedule or partition are installed in this database."""
        rows = await connection.fetch(self._sql["extensions"])
        return tuple(row["extname"] for row in rows)

    def maintenance_lock(self, connection: Connection) -> AbstractAsyncContextManager[bool]:
        """Hold the right to maintain partitions; yields False when another session has it."""
        return session_lock(
            connection, self._sql["take_maintenance"], self._sql["release_maintenance"]
        )

    async def drop_expired_keys(self, connection: Connection) -> tuple[str, ...]:
        """Remove key partitions older than the retention; return their names.

        Each is two statements of their own (a concurrent detach cannot share a commit); cut short
        anywhere, the next call goes on.
        """
        rows = await connection.fetch(self._sql["expired_key_partitions"], KEY_RETENTION)
        for row in rows:
            if row["detach"] is not None:
                await connection.execute(row["detach"])
            await connection.execute(row["remove"])
        return tuple(row["partition"] for row in rows)


def key_tag(key_hash: bytes) -> int:
    """Return the first eight bytes of a key's hash as PostgreSQL's signed bigint."""
    return int.from_bytes(key_hash[:8], "big", signed=True)


def accounts_of(operations: Iterable[Operation]) -> dict[AccountId, int]:
    """Return the accounts that operations touch, with their shards."""
    return {operation.account_id: operation.shard for operation in operations}


def moment_of(identifier: UUID) -> datetime:
    """Return the start of the millisecond inside a UUIDv7; at most the end of the calendar."""
    return _EPOCH + min(identifier.int >> 80, _LAST_MS) * _MILLISECOND


def _is_expiry_due(account: Account, now: datetime) -> bool:
    is_frozen = account.frozen_at is not None  # then nothing is booked
    return not is_frozen and account.next_expiry is not None and account.next_expiry <= now


def _are_expiries_due(loaded: Loaded) -> bool:
    return any(_is_expiry_due(account, loaded.now) for account in loaded.accounts.values())


def account_of(row: Row) -> Account:
    """Return the account in a row that has all its columns."""
    return Account(
        account_id=AccountId(row["account_id"]), tenant_id=TenantId(row["tenant_id"]),
        shard=row["shard"], balance=row["balance"], reserved=row["reserved"],
        version=row["version"], head_hash=row["head_hash"], created_at=row["created_at"],
        next_expiry=row["next_expiry"], frozen_at=row["frozen_at"],
    )  # fmt: skip


def faults_of(stored: str) -> tuple[Fault, ...]:
    """Return the faults in a freeze's JSON; none of what somebody else wrote there."""
    try:
        return msgspec.json.decode(stored, type=tuple[Fault, ...])
    except msgspec.ValidationError:
        return ()


def _hold(row: Row) -> Hold:
    return Hold(
        hold_id=TransactionId(row["hold_id"]), account_id=AccountId(row["account_id"]),
        shard=row["shard"], amount=row["amount"], captured=row["captured"],
        released=row["released"], allowance=row["allowance"], overrun=row["overrun"],
        state=HoldState(row["state"]), expires_at=row["expires_at"], created_at=row["created_at"],
    )  # fmt: skip


def transaction_of(row: Row) -> Transaction:
    """Return the transaction in a row that has all its columns."""
    reference_id = row["reference_id"]
    return Transaction(
        transaction_id=TransactionId(row["transaction_id"]),
        account_id=AccountId(row["account_id"]), shard=row["shard"], kind=_KINDS[row["kind"]],
        amount=row["amount"], balance=row["balance"], reserved=row["reserved"],
        sequence=row["sequence"], fingerprint=row["fingerprint"], hash=row["hash"],
        created_at=row["created_at"], description=row["description"], metadata=row["metadata"],
        reference_id=None if reference_id is None else TransactionId(reference_id),
        freed=row["freed"], expires_at=row["expires_at"], allowance=row["allowance"],
        payment=row["payment"],
    )  # fmt: skip


def _accepted(keyed: KeyedTransaction) -> tuple[object, ...]:
    t, key_hash = keyed.transaction, keyed.key_hash or None
    return (
        t.shard, t.account_id, t.transaction_id, t.kind, t.amount, t.balance, t.reserved,
        t.sequence, t.fingerprint, t.hash, t.description, t.metadata, key_hash,
        None if key_hash is None else key_tag(key_hash), t.reference_id, t.freed, t.expires_at,
        t.allowance, t.payment,
    )  # fmt: skip


def _written_hold(hold: Hold) -> tuple[object, ...]:
    return (
        hold.shard, hold.hold_id, hold.account_id, hold.amount, hold.captured, hold.released,
        hold.allowance, hold.overrun, hold.state, hold.expires_at, hold.created_at,
    )  # fmt: skip
