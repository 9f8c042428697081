"""What an auditor may ask: checkpoints, their leaves beside the ledger, proofs, and chains' links.

Nothing here decides whether the ledger holds: it hands out what `audit.py` judges, on the side of
whoever asks. A caller bound to a tenant sees that tenant's leaves; of others only their hashes,
which a tree needs and which say nothing.
"""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from tollkeeper.credits.audit_messages import (
    CheckpointPage,
    CheckpointView,
    FieldView,
    LeafPage,
    LeafView,
    LedgerView,
    LinkPage,
    LinkView,
    ProofView,
    SiblingView,
    leaf_fields,
)
from tollkeeper.credits.chain import fields_of, genesis, unlinked
from tollkeeper.credits.checkpoint import read_checkpoint
from tollkeeper.credits.checkpoint_store import CheckpointStore, CoveringLeaf, LeafBesideLedger
from tollkeeper.credits.errors import (
    AccountNotFound,
    CheckpointNotFound,
    NotCheckpointed,
    TransactionNotFound,
)
from tollkeeper.credits.merkle import Tree, TreeHasher
from tollkeeper.credits.model import Account, Transaction
from tollkeeper.credits.note import split_note
from tollkeeper.credits.store import LedgerStore
from tollkeeper.database.driver import Connection
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.ids import AccountId, TenantId, TransactionId, shard_of

LINKS_LIMIT: Final = 1_000
"""Most links that come with a proof; more come page by page."""


class Auditor:
    """The audit's reads over one ledger; each is one unit of work."""

    def __init__(self, pool: Pool, store: CheckpointStore, ledger: LedgerStore) -> None:
        self._pool = pool
        self._store = store
        self._ledger = ledger
        self._proving = asyncio.Lock()

    async def checkpoints(self, *, after: int, limit: int) -> CheckpointPage:
        """Return up to `limit` checkpoints behind a number, oldest first."""
        async with self._pool.connection() as connection:
            found = await self._store.after(connection, after, limit + 1)
        page = found[:limit]
        following = str(page[-1].number) if len(found) > limit else None
        return CheckpointPage([CheckpointView(kept.number, kept.note) for kept in page], following)

    async def leaves(
        self, number: int, tenant_id: TenantId | None, *, after: int, limit: int
    ) -> LeafPage:
        """Return up to `limit` leaves of a checkpoint from position `after` on, beside the ledger.

        Raises:
            CheckpointNotFound: there is no such checkpoint.
        """
        async with self._pool.connection() as connection:
            if await self._store.checkpoint(connection, number) is None:
                raise CheckpointNotFound(number=number)
            found = await self._store.leaves_beside_ledger(
                connection, number, start=after, limit=limit
            )
        following = str(after + limit) if len(found) == limit else None
        return LeafPage([_leaf_view(each, tenant_id) for each in found], following)

    async def links(
        self, account_id: AccountId, tenant_id: TenantId | None, *, after: int, limit: int
    ) -> LinkPage:
        """Return what is hashed of up to `limit` transactions behind a sequence, oldest first.

        Raises:
            AccountNotFound: there is no such account, or it is another tenant's.
        """
        async with self._pool.connection() as connection:
            account = await self._visible(connection, account_id, tenant_id)
            found = await self._ledger.history(connection, account, after=after, limit=limit + 1)
        page = found[:limit]
        following = str(page[-1].sequence) if len(found) > limit else None
        return LinkPage(_link_views(page), following)

    async def prove(self, transaction_id: TransactionId, tenant_id: TenantId | None) -> ProofView:
        """Return the proof that a transaction is under a signed checkpoint.

        Raises:
            TransactionNotFound: there is no such transaction, or it is another tenant's.
            NotCheckpointed: no checkpoint covers it yet.
        """
        # A path needs all leaves of its tree: one at a time, so that proving never starves serving.
        async with (
            self._proving,
            self._pool.connection() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            found = await self._ledger.transaction(connection, transaction_id)
            if found is None or (tenant_id is not None and found[1] != tenant_id):
                raise TransactionNotFound(transaction_id=transaction_id)
            transaction, owner = found
            account_id, shard = transaction.account_id, transaction.shard
            covering = await self._store.covering(
                connection, account_id, shard, transaction.sequence
            )
            if covering is None:
                raise NotCheckpointed(transaction_id=transaction_id)
            previous = genesis(account_id, owner)
            if transaction.sequence > 1:
                before = transaction.sequence - 1
                # A row that is gone breaks the proof: whoever checks it sees that.
                previous = (
                    await self._store.hash_at(connection, account_id, shard, before) or previous
                )
            wanted = min(LINKS_LIMIT, covering.leaf.sequence - transaction.sequence)
            links: Sequence[Transaction] = ()
            if wanted:
                account = await self._visible(connection, account_id, tenant_id)
                links = await self._ledger.history(
                    connection, account, after=transaction.sequence, limit=wanted
                )
            tree = await self._tree(connection, covering)
        return _proof_view(transaction, links, covering, previous=previous, tree=tree)

    async def _tree(self, connection: Connection, covering: CoveringLeaf) -> Tree:
        hasher = TreeHasher(position=covering.position)
        async for leaf in self._store.leaves(connection, covering.checkpoint.number):
            hasher.add(leaf.hash)
        return hasher.finish()

    async def _visible(
        self, connection: Connection, account_id: AccountId, tenant_id: TenantId | None
    ) -> Account:
        account = await self._ledger.account(connection, account_id, shard_of(account_id))
        if account is None or (tenant_id is not None and account.tenant_id != tenant_id):
            raise AccountNotFound(account_id=account_id)
        return account


def _leaf_view(found: LeafBesideLedger, tenant_id: TenantId | None) -> LeafView:
    leaf = found.leaf
    if tenant_id is not None and leaf.tenant_id != tenant_id:
        return LeafView(position=found.position, hash=leaf.hash.hex(), leaf=None, ledger=None)
    if found.account_version is None or found.account_tenant is None:
        ledger = None
    else:
        ledger = LedgerView(
            tenant_id=found.account_tenant,
            version=found.account_version,
            hash=None if found.transaction_hash is None else found.transaction_hash.hex(),
            balance=found.transaction_balance,
            reserved=found.transaction_reserved,
        )
    return LeafView(
        position=found.position, hash=leaf.hash.hex(), leaf=leaf_fields(leaf), ledger=ledger
    )


def _link_views(transactions: Sequence[Transaction]) -> list[LinkView]:
    return [LinkView(each.sequence, unlinked(each).hex()) for each in transactions]


def _proof_view(
    transaction: Transaction,
    links: Sequence[Transaction],
    covering: CoveringLeaf,
    *,
    previous: bytes,
    tree: Tree,
) -> ProofView:
    hashed = unlinked(transaction)
    return ProofView(
        transaction_id=str(transaction.transaction_id),
        account_id=transaction.account_id,
        sequence=transaction.sequence,
        previous_hash=previous.hex(),
        chain_version=hashed[0],
        transaction=[
            FieldView(name, None if value is None else value.hex())
            for name, value in fields_of(hashed)
        ],
        links=_link_views(links),
        leaf=leaf_fields(covering.leaf),
        checkpoint=covering.checkpoint.number,
        made_at=_time_of(covering.checkpoint.note),
        position=covering.position,
        path=[SiblingView(sibling.side, sibling.hash.hex()) for sibling in tree.path],
        note=covering.checkpoint.note,
    )


def _time_of(note: str) -> datetime:
    return read_checkpoint(split_note(note)[0]).made_at
