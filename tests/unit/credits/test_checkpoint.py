"""Leaves and texts of checkpoints, written out: auditors without our code need exactly this."""

import hashlib
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.credits.checkpoint import (
    BEFORE_THE_FIRST,
    Checkpoint,
    Leaf,
    digest_of,
    read_checkpoint,
)
from tollkeeper.credits.errors import NoteInvalid

LEAF = Leaf(
    tenant_id="acme", account_id="ann", sequence=7, head_hash=bytes(range(32)), balance=500,
    reserved=20,
)  # fmt: skip
CHECKPOINT = Checkpoint(
    origin="example.com/credits", number=2, leaves=3, root=bytes(range(32)),
    made_at=datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC), previous=BEFORE_THE_FIRST,
)  # fmt: skip
TEXT = """\
example.com/credits
3
AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=
number 2
time 2026-01-02T03:04:05.000006Z
previous AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
"""


def part(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big") + value


def number(value: int) -> bytes:
    return part(value.to_bytes(8, "big"))


def test_a_leaf_is_its_version_and_its_length_prefixed_fields() -> None:
    written_out = (
        b"\x01" + part(b"acme") + part(b"ann") + number(7) + part(bytes(range(32)))
        + number(500) + number(20)
    )  # fmt: skip

    assert written_out == LEAF.encoded()
    assert hashlib.sha256(b"\x00" + written_out).digest() == LEAF.hash


@given(
    st.builds(Leaf, tenant_id=st.text("ab|", max_size=3), account_id=st.text("ab|", max_size=3),
              sequence=st.integers(0, 3), head_hash=st.binary(min_size=32, max_size=32),
              balance=st.integers(0, 3), reserved=st.integers(0, 3)),
    st.builds(Leaf, tenant_id=st.text("ab|", max_size=3), account_id=st.text("ab|", max_size=3),
              sequence=st.integers(0, 3), head_hash=st.binary(min_size=32, max_size=32),
              balance=st.integers(0, 3), reserved=st.integers(0, 3)),
)  # fmt: skip
def test_no_two_different_leaves_have_the_same_bytes(one: Leaf, other: Leaf) -> None:
    assert (one == other) == (one.encoded() == other.encoded())


def test_the_text_has_the_form_of_a_tlog_checkpoint_and_our_three_lines() -> None:
    assert TEXT == CHECKPOINT.text()
    assert CHECKPOINT == read_checkpoint(TEXT)
    assert hashlib.sha256(TEXT.encode()).digest() == digest_of(TEXT)


@given(
    count=st.integers(1, 10**17),
    place=st.integers(1, 10**17),
    root=st.binary(min_size=32, max_size=32),
    made_at=st.datetimes(min_value=datetime(1970, 1, 1)),  # noqa: DTZ001  # made aware below
)
def test_every_checkpoint_can_be_read_back(
    count: int, place: int, root: bytes, made_at: datetime
) -> None:
    checkpoint = msgspec.structs.replace(
        CHECKPOINT, leaves=count, number=place, root=root, made_at=made_at.replace(tzinfo=UTC)
    )

    assert checkpoint == read_checkpoint(checkpoint.text())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("number 2", "number 0"), ("number 2", "number 02"), ("number 2\n", ""), ("3\n", "-3\n"),
        ("3\n", "03\n"), ("Z\n", "\n"), ("2026-01-02", "2026-13-02"), ("AAEC", "AA!C"),
        ("AAECAwQF", "AAEC"), ("Hh8=", "Hh9="), ("previous ", "previous"), (TEXT, f"{TEXT}more\n"),
    ],
)  # fmt: skip
def test_what_is_no_checkpoint_is_refused(before: str, after: str) -> None:
    with pytest.raises(NoteInvalid):
        read_checkpoint(TEXT.replace(before, after, 1))
