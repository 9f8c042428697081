"""Judges a ledger by the checkpoints that were published of it: whoever has the file may run this.

What is trusted is the file and the public keys, never the ledger: every note's signature, their
chain, every tree and every leaf is computed here from what the ledger answers. Pure: the ledger is
what the caller passes; memory grows neither with the file nor with the ledger.

Not here: whether the rows between two checkpointed heads hold together (`chain.py`).
"""
# ruff: noqa: D102 - the views' properties are the contract's fields and say what they are

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Final, Protocol

import msgspec

from tollkeeper.credits.chain import genesis
from tollkeeper.credits.checkpoint import (
    BEFORE_THE_FIRST,
    Checkpoint,
    Leaf,
    digest_of,
    read_checkpoint,
)
from tollkeeper.credits.errors import NoteInvalid
from tollkeeper.credits.merkle import TreeHasher
from tollkeeper.credits.note import VerifyingKey, open_note, split_note
from tollkeeper.kernel.ids import AccountId, TenantId

FAULTS_LIMIT: Final = 1_000
"""Faults that are kept; `more_faults` says that there are others."""


class AuditFaultKind(StrEnum):
    """What an audit can find wrong."""

    SIGNATURE = "signature"
    CHECKPOINT = "checkpoint"
    TREE = "tree"
    VANISHED = "vanished"
    TRUNCATED = "truncated"
    REWRITTEN = "rewritten"


class AuditFault(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that does not agree; without an account it is the checkpoint itself."""

    account_id: str | None
    sequence: int
    fault: AuditFaultKind
    detail: str


class AuditFindings(msgspec.Struct, frozen=True, kw_only=True):
    """What was looked at: checkpoints, leaves, notes that stood twice, and the last number."""

    checkpoints: int
    leaves: int
    repeated: int
    last: int
    faults: tuple[AuditFault, ...]
    more_faults: bool


class CheckpointItem(Protocol):
    """A checkpoint as the ledger keeps it."""

    @property
    def number(self) -> int: ...
    @property
    def note(self) -> str: ...


class CheckpointItems(Protocol):
    """A page of checkpoints."""

    @property
    def items(self) -> Sequence[CheckpointItem]: ...


class LeafFacts(Protocol):
    """A leaf's fields; the hash is hexadecimal."""

    @property
    def tenant_id(self) -> str: ...
    @property
    def account_id(self) -> str: ...
    @property
    def sequence(self) -> int: ...
    @property
    def head_hash(self) -> str: ...
    @property
    def balance(self) -> int: ...
    @property
    def reserved(self) -> int: ...


class LedgerFacts(Protocol):
    """What the ledger says today of a leaf's account and sequence."""

    @property
    def tenant_id(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def hash(self) -> str | None: ...
    @property
    def balance(self) -> int | None: ...
    @property
    def reserved(self) -> int | None: ...


class LeafItem(Protocol):
    """A leaf beside the ledger; `leaf` is None when it is another tenant's."""

    @property
    def hash(self) -> str: ...
    @property
    def leaf(self) -> LeafFacts | None: ...
    @property
    def ledger(self) -> LedgerFacts | None: ...


class LeafItems(Protocol):
    """A page of leaves; `next` is None on the last one."""

    @property
    def items(self) -> Sequence[LeafItem]: ...
    @property
    def next(self) -> str | None: ...


class AuditedLedger(Protocol):
    """The questions an audit asks."""

    async def checkpoints(self, *, after: int) -> CheckpointItems:
        """Return a page of checkpoints behind a number, oldest first."""
        ...

    async def leaves(self, number: int, *, after: str | None = None) -> LeafItems:
        """Return a page of a checkpoint's leaves."""
        ...


class CheckpointAudit:
    """One audit: `read` the notes, then `finish`."""

    def __init__(self, ledger: AuditedLedger, keys: Sequence[VerifyingKey]) -> None:
        self._ledger = ledger
        self._keys = keys
        self._kept: dict[int, str] = {}
        self._last_text: str | None = None
        self._last = 0
        self._checkpoints = 0
        self._leaves = 0
        self._repeated = 0
        self._faults: list[AuditFault] = []
        self._more_faults = False

    async def read(self, notes: Iterable[str]) -> None:
        """Judge notes in the order of the file; what cannot be read as notes is raised.

        Raises:
            NoteInvalid: the file goes on with something else.
        """
        for note in notes:
            await self._judge(note)

    async def missing(self) -> int:
        """Return how many checkpoints of the ledger are not in what was read, at least."""
        return len((await self._ledger.checkpoints(after=self._last)).items)

    def torn(self, error: NoteInvalid) -> None:
        """Report that the file cannot be read to its end."""
        self._report(AuditFaultKind.CHECKPOINT, f"the file holds something else: {error}")

    def ends_early(self, missing: int) -> None:
        """Report that the ledger has checkpoints behind the file's last one."""
        self._report(
            AuditFaultKind.CHECKPOINT,
            f"the file ends with checkpoint {self._last}, the ledger has {missing} more or above: "
            "the file was cut, or is an old copy",
        )

    def finish(self) -> AuditFindings:
        """Return what was found."""
        return AuditFindings(
            checkpoints=self._checkpoints, leaves=self._leaves, repeated=self._repeated,
            last=self._last, faults=tuple(self._faults), more_faults=self._more_faults,
        )  # fmt: skip

    async def _judge(self, note: str) -> None:
        try:
            text, _ = split_note(note)
            if text == self._last_text:
                self._repeated += 1  # the publisher did not learn that it had been taken
                return
            checkpoint = read_checkpoint(text)
        except NoteInvalid as error:
            self._report(
                AuditFaultKind.CHECKPOINT, f"the note behind checkpoint {self._last}: {error}"
            )
            return
        number = checkpoint.number
        try:
            open_note(note, self._keys)
        except NoteInvalid as error:
            self._report(AuditFaultKind.SIGNATURE, f"checkpoint {number}: {error}")
        self._judge_link(checkpoint)
        self._last_text, self._last = text, number
        self._checkpoints += 1
        if await self._is_kept(number, text):
            await self._judge_leaves(checkpoint)

    def _judge_link(self, checkpoint: Checkpoint) -> None:
        number = checkpoint.number
        expected = self._last + 1
        before = BEFORE_THE_FIRST if self._last_text is None else digest_of(self._last_text)
        if number != expected:
            self._report(
                AuditFaultKind.CHECKPOINT,
                f"checkpoint {number} stands where {expected} should: some are missing or doubled",
            )
        elif checkpoint.previous != before:
            self._report(
                AuditFaultKind.CHECKPOINT,
                f"checkpoint {number} does not follow the one before it: one of them was replaced",
            )

    async def _is_kept(self, number: int, text: str) -> bool:
        if number not in self._kept:
            page = await self._ledger.checkpoints(after=number - 1)
            self._kept = {item.number: item.note for item in page.items}
        kept = self._kept.get(number)
        if kept is None:
            self._report(AuditFaultKind.CHECKPOINT, f"the ledger has no checkpoint {number}")
            return False
        if not kept.startswith(f"{text}\n"):
            self._report(AuditFaultKind.CHECKPOINT, f"the ledger has another checkpoint {number}")
        return True

    async def _judge_leaves(self, checkpoint: Checkpoint) -> None:
        hasher = TreeHasher()
        after: str | None = None
        while True:
            page = await self._ledger.leaves(checkpoint.number, after=after)
            for item in page.items:
                hasher.add(self._judged(item, checkpoint.number))
            if page.next is None:
                break
            after = page.next
        tree = hasher.finish()
        self._leaves += tree.size
        if tree.size != checkpoint.leaves:
            self._report(
                AuditFaultKind.TREE,
                f"checkpoint {checkpoint.number} was signed over {checkpoint.leaves} accounts, the "
                f"ledger has {tree.size} leaves of it",
            )
        elif tree.root != checkpoint.root:
            self._report(
                AuditFaultKind.TREE,
                f"the leaves of checkpoint {checkpoint.number} are not the ones that were signed",
            )

    def _judged(self, item: LeafItem, number: int) -> bytes:
        """Compare a leaf with the ledger and return its hash, of which nothing is taken on trust.

        Of another tenant's leaf only the hash is known; a wrong one makes another root.
        """
        if item.leaf is None:
            return bytes.fromhex(item.hash)
        leaf = Leaf(
            tenant_id=item.leaf.tenant_id, account_id=item.leaf.account_id,
            sequence=item.leaf.sequence, head_hash=bytes.fromhex(item.leaf.head_hash),
            balance=item.leaf.balance, reserved=item.leaf.reserved,
        )  # fmt: skip
        found = _disagreement(leaf, item.ledger)
        if found is not None:
            kind, detail = found
            self._report(kind, f"checkpoint {number}: {detail}", leaf.account_id, leaf.sequence)
        return leaf.hash

    def _report(
        self, kind: AuditFaultKind, detail: str, account_id: str | None = None, sequence: int = 0
    ) -> None:
        if len(self._faults) == FAULTS_LIMIT:
            self._more_faults = True
            return
        self._faults.append(
            AuditFault(account_id=account_id, sequence=sequence, fault=kind, detail=detail)
        )


def _disagreement(leaf: Leaf, today: LedgerFacts | None) -> tuple[AuditFaultKind, str] | None:
    """Return in which way the ledger is not any more what a leaf says it was."""
    if today is None:
        return AuditFaultKind.VANISHED, "the account is gone"
    if today.tenant_id != leaf.tenant_id:
        return (
            AuditFaultKind.REWRITTEN,
            f"the account was tenant {leaf.tenant_id}'s and is tenant {today.tenant_id}'s",
        )
    if today.version < leaf.sequence:
        return (
            AuditFaultKind.TRUNCATED,
            f"the account was at sequence {leaf.sequence} and is at {today.version}",
        )
    if leaf.sequence == 0:
        start = genesis(AccountId(leaf.account_id), TenantId(leaf.tenant_id)).hex()
        difference = _difference(leaf, start, (0, 0))
    elif today.hash is None:
        return AuditFaultKind.TRUNCATED, "there is no transaction at this sequence any more"
    else:
        difference = _difference(leaf, today.hash, (today.balance, today.reserved))
    return None if difference is None else (AuditFaultKind.REWRITTEN, difference)


def _difference(leaf: Leaf, hash_then: str, said: tuple[int | None, int | None]) -> str | None:
    """Return in which way a leaf differs from the transaction that it names."""
    if hash_then != leaf.head_hash.hex():
        return f"the transaction had hash {leaf.head_hash.hex()} and has {hash_then}"
    if said != (leaf.balance, leaf.reserved):
        return (
            f"balance {leaf.balance} and reserved {leaf.reserved} were signed, the transaction "
            f"says {said[0]} and {said[1]}"
        )
    return None
