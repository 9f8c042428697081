"""Typed calls of the audit: checkpoints, their leaves, links of a chain, proofs.

Judges nothing: `tollkeeper credits verify --checkpoints` does.
"""

from urllib.parse import quote

import msgspec

from tollkeeper.client.caller import Caller

PAGE_LIMIT = 1_000
"""Most items on one page."""

PROOF_TIMEOUT_S = 120.0
"""Longest wait for a proof: the service reads all leaves of a checkpoint for it."""


class Checkpoint(msgspec.Struct, frozen=True):
    """A signed checkpoint."""

    number: int
    note: str


class CheckpointPage(msgspec.Struct, frozen=True):
    """Checkpoints, oldest first."""

    items: tuple[Checkpoint, ...]
    next: str | None = None


class LeafFields(msgspec.Struct, frozen=True):
    """The head of an account as a checkpoint covers it."""

    tenant_id: str
    account_id: str
    sequence: int
    head_hash: str
    balance: int
    reserved: int


class LedgerFields(msgspec.Struct, frozen=True):
    """What the ledger says today of a leaf's account and sequence."""

    tenant_id: str
    version: int
    hash: str | None
    balance: int | None
    reserved: int | None


class Leaf(msgspec.Struct, frozen=True):
    """A leaf of a checkpoint; `leaf` is None when it is another tenant's."""

    position: int
    hash: str
    leaf: LeafFields | None
    ledger: LedgerFields | None


class LeafPage(msgspec.Struct, frozen=True):
    """Leaves in the order of the tree."""

    items: tuple[Leaf, ...]
    next: str | None = None


class Link(msgspec.Struct, frozen=True):
    """What is hashed of a transaction, without the hash before it; hexadecimal."""

    sequence: int
    hashed: str


class LinkPage(msgspec.Struct, frozen=True):
    """Links of an account's chain, oldest first."""

    items: tuple[Link, ...]
    next: str | None = None


class Field(msgspec.Struct, frozen=True):
    """A canonical field, hexadecimal; None: absent."""

    name: str
    value: str | None


class Sibling(msgspec.Struct, frozen=True):
    """A hash beside the way from a leaf to the root."""

    side: str
    hash: str


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """That a transaction is under a signed checkpoint; see `docs/guide/audit.md`."""

    transaction_id: str
    account_id: str
    sequence: int
    previous_hash: str
    chain_version: int
    transaction: tuple[Field, ...]
    links: tuple[Link, ...]
    leaf: LeafFields
    checkpoint: int
    made_at: str
    position: int
    path: tuple[Sibling, ...]
    note: str


class AuditCaller(Caller):
    """The audit's calls; `CreditsClient` has them."""

    async def checkpoints(self, *, after: int = 0, limit: int = PAGE_LIMIT) -> CheckpointPage:
        """Return a page of signed checkpoints behind a number, oldest first."""
        path = f"/v1/audit/checkpoints?after={after}&limit={limit}"
        return self._decode(await self._call("GET", path), CheckpointPage)

    async def leaves(self, number: int, *, after: str | None = None) -> LeafPage:
        """Return a page of a checkpoint's leaves beside the ledger; `after` is a page's `next`."""
        path = f"/v1/audit/checkpoints/{number}/leaves?limit={PAGE_LIMIT}"
        cursor = "" if after is None else f"&after={quote(after, safe='')}"
        return self._decode(await self._call("GET", path + cursor), LeafPage)

    async def links(self, account_id: str, *, after: int) -> LinkPage:
        """Return a page of an account's links behind a sequence, oldest first."""
        path = f"/v1/accounts/{quote(account_id, safe='')}/links?after={after}&limit={PAGE_LIMIT}"
        return self._decode(await self._call("GET", path), LinkPage)

    async def prove(self, transaction_id: str) -> Proof:
        """Return the whole proof of a transaction, with every link up to its leaf.

        Raises:
            CallRefused: there is no such transaction, or no checkpoint covers it yet.
        """
        path = f"/v1/audit/proofs/{quote(transaction_id, safe='')}"
        response = await self._call("GET", path, timeout_s=PROOF_TIMEOUT_S)
        proof = self._decode(response, Proof)
        links = list(proof.links)
        last = proof.sequence + len(links)
        while last < proof.leaf.sequence:
            page = await self.links(proof.account_id, after=last)
            wanted = page.items[: proof.leaf.sequence - last]
            links += wanted
            if not wanted:
                break  # rows are gone: the proof does not hold, and whoever checks it sees that
            last += len(wanted)
        return msgspec.structs.replace(proof, links=tuple(links))
