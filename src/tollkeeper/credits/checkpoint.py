"""What a checkpoint says: heads of accounts as leaves of a Merkle tree, and a text to be signed.

The text has the form of a C2SP tlog-checkpoint: origin, number of leaves, root, and three lines of
our own that chain it: its number, its time, and the SHA-256 of the text before it. Pure: neither
signs (`note.py`) nor reads the ledger.
"""

import hashlib
import re
import struct
from datetime import UTC, datetime

import msgspec

from tollkeeper.credits.errors import NoteInvalid
from tollkeeper.credits.merkle import HASH_BYTES, leaf_hash
from tollkeeper.credits.note import base64_of, bytes_of

LEAF_VERSION = 1
"""First byte of every leaf; another way to write leaves gets another number."""

LEAF_FIELDS = ("tenant_id", "account_id", "sequence", "head_hash", "balance", "reserved")
"""What a leaf consists of, in order; each has its length in four bytes before it."""

BEFORE_THE_FIRST = bytes(HASH_BYTES)
"""Stands for the text before the first checkpoint's."""

_NUMBERS = struct.Struct(">IqI32sIqIq")
_LENGTH = struct.Struct(">I")
_TEXT = re.compile(
    r"(?P<origin>[^\n]+)\n(?P<leaves>0|[1-9][0-9]{0,17})\n(?P<root>[^\n]+)\n"
    r"number (?P<number>[1-9][0-9]{0,17})\n"
    r"time (?P<time>[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6})Z\n"
    r"previous (?P<previous>[^\n]+)\n"
)


class Leaf(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An account's head as a checkpoint covers it; `sequence` is the account's version then."""

    tenant_id: str
    account_id: str
    sequence: int
    head_hash: bytes
    balance: int
    reserved: int

    def encoded(self) -> bytes:
        """Return the leaf's canonical bytes: version byte, then length and value of each field."""
        tenant, account = self.tenant_id.encode(), self.account_id.encode()
        return (
            bytes((LEAF_VERSION,))
            + _LENGTH.pack(len(tenant)) + tenant + _LENGTH.pack(len(account)) + account
            + _NUMBERS.pack(
                8, self.sequence, HASH_BYTES, self.head_hash, 8, self.balance, 8, self.reserved
            )
        )  # fmt: skip

    @property
    def hash(self) -> bytes:
        """Return the leaf's hash in the tree."""
        return leaf_hash(self.encoded())


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """What is signed. `previous` is the SHA-256 of the text before, `made_at` the database's time.

    `origin` is the name of the key that signed it first.
    """

    origin: str
    number: int
    leaves: int
    root: bytes
    made_at: datetime
    previous: bytes

    def text(self) -> str:
        """Return the text to be signed."""
        time = self.made_at.astimezone(UTC).isoformat(timespec="microseconds")
        return (
            f"{self.origin}\n{self.leaves}\n{base64_of(self.root)}\nnumber {self.number}\n"
            f"time {time.removesuffix('+00:00')}Z\nprevious {base64_of(self.previous)}\n"
        )


def read_checkpoint(text: str) -> Checkpoint:
    """Return the checkpoint that a text says.

    Raises:
        NoteInvalid: it is none.
    """
    found = _TEXT.fullmatch(text)
    if found is None:
        raise NoteInvalid(problem="the note is no checkpoint of a ledger")
    try:
        made_at = datetime.fromisoformat(found["time"]).replace(tzinfo=UTC)
    except ValueError as error:
        raise NoteInvalid(problem="the checkpoint's time is none") from error
    return Checkpoint(
        origin=found["origin"], number=int(found["number"]), leaves=int(found["leaves"]),
        root=_hash_of(found["root"]), made_at=made_at, previous=_hash_of(found["previous"]),
    )  # fmt: skip


def digest_of(text: str) -> bytes:
    """Return what the next checkpoint calls its `previous`."""
    return hashlib.sha256(text.encode()).digest()


def _hash_of(text: str) -> bytes:
    value = bytes_of(text)
    if len(value) != HASH_BYTES:
        raise NoteInvalid(problem=f"a hash of the checkpoint has not {HASH_BYTES} bytes")
    return value
