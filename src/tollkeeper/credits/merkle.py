"""Merkle trees as RFC 6962 and RFC 9162 define them: root and inclusion path, in one pass. Pure.

A tree is never held: leaves are added in order, and what is kept is one hash for each power of two
in their number. So neither the root nor a path costs memory that grows with the tree.

Not here: consistency proofs. Each checkpoint has a tree of its own, which never grows; that
nothing was taken away follows from the chain of checkpoints.

Source: RFC 9162, section 2.1 (the same hashes as RFC 6962, section 2.1).
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

HASH_BYTES = 32

Side = Literal["left", "right"]


@dataclass(frozen=True, slots=True)
class Sibling:
    """One step of an inclusion path: the hash beside ours, and on which side of us it stands."""

    side: Side
    hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A finished tree; `path` leads from the leaf that was asked for to the root."""

    size: int
    root: bytes
    path: tuple[Sibling, ...]


def leaf_hash(leaf: bytes) -> bytes:
    """Return the hash of a leaf; its first byte keeps it apart from every inner node's."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def climb(leaf: bytes, path: Iterable[Sibling]) -> bytes:
    """Return the root that `path` leads to from the hash of a leaf."""
    found = leaf
    for sibling in path:
        if sibling.side == "left":
            found = node_hash(sibling.hash, found)
        else:
            found = node_hash(found, sibling.hash)
    return found


def tree_of(leaves: Iterable[bytes], *, position: int | None = None) -> Tree:
    """Return the tree over leaves, with the path of the leaf at `position`."""
    hasher = TreeHasher(position=position)
    for leaf in leaves:
        hasher.add(leaf_hash(leaf))
    return hasher.finish()


class TreeHasher:
    """Takes the hashes of leaves in order; `position` is the leaf whose path is wanted."""

    def __init__(self, *, position: int | None = None) -> None:
        self._position = position
        self._size = 0
        # Complete subtrees, the largest first, and whether the wanted leaf is in them.
        self._subtrees: list[tuple[bytes, bool]] = []
        self._path: list[Sibling] = []

    def add(self, leaf: bytes) -> None:
        """Add the hash of the next leaf."""
        subtree = (leaf, self._size == self._position)
        complete = self._size
        while complete & 1:
            subtree = self._joined(self._subtrees.pop(), subtree)
            complete >>= 1
        self._subtrees.append(subtree)
        self._size += 1

    def finish(self) -> Tree:
        """Return the tree; nothing can be added afterwards."""
        subtrees: Sequence[tuple[bytes, bool]] = self._subtrees
        if not subtrees:
            return Tree(size=0, root=hashlib.sha256(b"").digest(), path=())
        whole = subtrees[-1]
        for subtree in reversed(subtrees[:-1]):
            whole = self._joined(subtree, whole)
        return Tree(size=self._size, root=whole[0], path=tuple(self._path))

    def _joined(self, left: tuple[bytes, bool], right: tuple[bytes, bool]) -> tuple[bytes, bool]:
        if right[1]:
            self._path.append(Sibling("left", left[0]))
        elif left[1]:
            self._path.append(Sibling("right", right[0]))
        return node_hash(left[0], right[0]), left[1] or right[1]
