"""What an auditor is shown: checkpoints, leaves, links and proofs as they go over the wire. Pure.

Hashes and canonical bytes are hexadecimal. What they mean to somebody without this code is written
in `docs/guide/audit.md`.
"""

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tollkeeper.credits.checkpoint import Leaf
from tollkeeper.credits.messages import Hash, MinorUnits

Note = Annotated[
    str, Meta(description="the signed note, to the byte (C2SP signed-note, tlog-checkpoint)")
]
Hex = Annotated[str, Meta(pattern="^([0-9a-f]{2})*$", description="bytes, hexadecimal")]
Next = Annotated[str | None, Meta(description="send it as `after` for the next page")]
Position = Annotated[int, Meta(description="place of the leaf in the tree, from 0")]


class CheckpointView(msgspec.Struct, frozen=True):
    """A signed checkpoint."""

    number: Annotated[int, Meta(description="1, 2, 3 ... without gaps")]
    note: Note


class CheckpointPage(msgspec.Struct, frozen=True):
    """Checkpoints, oldest first; `next` is null on the last page."""

    items: list[CheckpointView]
    next: Next


class LeafFields(msgspec.Struct, frozen=True):
    """The head of an account as a checkpoint covers it."""

    tenant_id: str
    account_id: str
    sequence: Annotated[int, Meta(description="`sequence` of its last transaction then")]
    head_hash: Hash
    balance: MinorUnits
    reserved: MinorUnits


class LedgerView(msgspec.Struct, frozen=True):
    """What the ledger says today of the account and the sequence of a leaf."""

    tenant_id: str
    version: Annotated[int, Meta(description="`sequence` of the account's last transaction")]
    hash: Annotated[
        str | None, Meta(description="`hash` of the transaction at the leaf's sequence; null: none")
    ]
    balance: Annotated[int | None, Meta(description="balance after that transaction")]
    reserved: Annotated[int | None, Meta(description="reserved after that transaction")]


class LeafView(msgspec.Struct, frozen=True):
    """A leaf of a checkpoint; another tenant's is shown as its hash alone."""

    position: Position
    hash: Annotated[Hash, Meta(description="the leaf's hash in the tree (RFC 9162)")]
    leaf: Annotated[LeafFields | None, Meta(description="null: another tenant's")]
    ledger: Annotated[LedgerView | None, Meta(description="null: no such account today")]


class LeafPage(msgspec.Struct, frozen=True):
    """Leaves in the order of the tree; `next` is null on the last page."""

    items: list[LeafView]
    next: Next


class LinkView(msgspec.Struct, frozen=True):
    """What is hashed of a transaction: version byte, previous hash, then these fields."""

    sequence: int
    hashed: Annotated[Hex, Meta(description="version byte and canonical fields")]


class LinkPage(msgspec.Struct, frozen=True):
    """Links of an account's chain, oldest first; `next` is null on the last page."""

    items: list[LinkView]
    next: Next


class FieldView(msgspec.Struct, frozen=True):
    """A canonical field of a transaction."""

    name: str
    value: Annotated[str | None, Meta(description="hexadecimal; null: absent")]


class SiblingView(msgspec.Struct, frozen=True):
    """A hash beside the way from a leaf to the root."""

    side: Literal["left", "right"]
    hash: Hash


class ProofView(msgspec.Struct, frozen=True, kw_only=True):
    """That a transaction is under a signed checkpoint."""

    transaction_id: str
    account_id: str
    sequence: int
    previous_hash: Annotated[Hash, Meta(description="`hash` of the transaction before")]
    chain_version: Annotated[int, Meta(description="the version byte of the transaction's hash")]
    transaction: Annotated[list[FieldView], Meta(description="its canonical fields, in order")]
    links: Annotated[
        list[LinkView],
        Meta(description="the transactions up to the leaf's sequence; more are at `links`"),
    ]
    leaf: LeafFields
    checkpoint: int
    made_at: datetime
    position: Position
    path: list[SiblingView]
    note: Note


def leaf_fields(leaf: Leaf) -> LeafFields:
    """Return a leaf as it is shown."""
    return LeafFields(
        tenant_id=leaf.tenant_id, account_id=leaf.account_id, sequence=leaf.sequence,
        head_hash=leaf.head_hash.hex(), balance=leaf.balance, reserved=leaf.reserved,
    )  # fmt: skip
