"""Merkle trees of every shape: each leaf's path leads to the root, and nothing else does."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.credits.merkle import Sibling, climb, leaf_hash, tree_of

leaves = st.lists(st.binary(max_size=40), min_size=1, max_size=70)


def root_by_definition(found: list[bytes]) -> bytes:
    """RFC 9162, section 2.1.1, word for word."""
    if len(found) == 1:
        return leaf_hash(found[0])
    split = 1
    while 2 * split < len(found):
        split *= 2
    left, right = root_by_definition(found[:split]), root_by_definition(found[split:])
    return hashlib.sha256(b"\x01" + left + right).digest()


@given(found=leaves)
def test_the_root_is_the_one_of_the_definition(found: list[bytes]) -> None:
    assert root_by_definition(found) == tree_of(found).root


@given(found=leaves, data=st.data())
def test_the_path_of_every_leaf_leads_to_the_root(found: list[bytes], data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(found) - 1))
    tree = tree_of(found, position=position)

    assert tree_of(found).root == tree.root == climb(leaf_hash(found[position]), tree.path)
    assert len(tree.path) <= (len(found) - 1).bit_length()


@given(found=leaves, data=st.data())
def test_one_bit_anywhere_leads_to_another_root(found: list[bytes], data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(found) - 1))
    tree = tree_of(found, position=position)
    leaf = leaf_hash(found[position])
    path = list(tree.path)
    place = data.draw(st.integers(0, len(path)))
    bit = 1 << data.draw(st.integers(0, 255))
    if place == len(path):
        leaf = flipped(leaf, bit)
    else:
        path[place] = Sibling(path[place].side, flipped(path[place].hash, bit))

    assert tree.root != climb(leaf, path)


@given(found=leaves, data=st.data())
def test_a_tree_says_how_many_leaves_it_has_and_in_which_order(
    found: list[bytes], data: st.DataObject
) -> None:
    other = data.draw(st.permutations(found))
    cut = found[: data.draw(st.integers(0, len(found) - 1))]

    assert (tree_of(other).root == tree_of(found).root) == (other == found)
    assert tree_of(cut).root != tree_of(found).root


def flipped(value: bytes, bit: int) -> bytes:
    return (int.from_bytes(value, "big") ^ bit).to_bytes(len(value), "big")
