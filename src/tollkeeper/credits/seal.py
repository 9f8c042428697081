"""What an archived partition is, as a text that can be signed. Pure.

The text begins as a checkpoint's does, with an origin, the number of leaves and the root of a
Merkle tree; its origin ends in `/seal`, so that neither can be taken for the other. A leaf is the
digest of one row as it is stored (`archived_digests` of `sql/life.sql`).
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from tollkeeper.credits.merkle import Tree
from tollkeeper.credits.note import base64_of

ORIGIN_END = "/seal"
"""Ends the first line of every seal."""

UNSIGNED = "unsigned"
"""Begins the first line of a seal that no key has signed."""

_WORD = re.compile(r"[a-z][a-z0-9_]*")


class Sum(msgspec.Struct, frozen=True, kw_only=True):
    """How many transactions of a kind there are, and their amounts in minor units."""

    kind: str
    transactions: int
    amount: int


class Seal(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of a partition: its bounds, its tree, and its sums in the order of their kinds."""

    partition: str
    from_time: datetime
    to_time: datetime
    tree: Tree
    sums: Sequence[Sum]

    def body(self) -> str:
        """Return what the rows alone decide: the text without who sealed it, and when."""
        head = (
            f"{self.tree.size}\n{base64_of(self.tree.root)}\npartition {_word(self.partition)}\n"
            f"from {_time_of(self.from_time)}\nto {_time_of(self.to_time)}\n"
        )
        return head + "".join(f"{_word(s.kind)} {s.transactions} {s.amount}\n" for s in self.sums)

    def text(self, origin: str, sealed_at: datetime) -> str:
        """Return the text to be signed; `origin` is the name of the key, or `UNSIGNED`."""
        return f"{origin}{ORIGIN_END}\n{self.body()}time {_time_of(sealed_at)}\n"


def text_of(note: str) -> str:
    """Return what a seal says, without the signatures of one that is signed."""
    body, blank, _ = note.rpartition("\n\n")
    return f"{body}\n" if blank else note


def is_signed(note: str) -> bool:
    """Whether a seal has signatures."""
    return "\n\n" in note


def body_of(note: str) -> str:
    """Return what a seal says of the rows: without its first line and its time."""
    return "".join(text_of(note).splitlines(keepends=True)[1:-1])


def _word(name: str) -> str:
    """Return a name that stays one word on its line, whatever somebody wrote in its place."""
    return name if _WORD.fullmatch(name) else f"base64:{base64_of(name.encode())}"


def _time_of(moment: datetime) -> str:
    time = moment.astimezone(UTC).isoformat(timespec="microseconds")
    return f"{time.removesuffix('+00:00')}Z"
