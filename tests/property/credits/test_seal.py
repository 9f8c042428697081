"""Seals: one text for what the rows are, which no name in it can bend, signed or not."""

from datetime import UTC, datetime

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.credits.merkle import tree_of
from tollkeeper.credits.note import make_key, open_note
from tollkeeper.credits.seal import UNSIGNED, Seal, Sum, body_of, is_signed, text_of

KEY = make_key("example.com/credits", bytes(range(32)))
NOW = datetime(2026, 11, 28, 5, tzinfo=UTC)

sums = st.builds(
    Sum,
    kind=st.sampled_from(["topup", "consume"]) | st.text(),
    transactions=st.integers(1, 2**40),
    amount=st.integers(-(2**70), 2**70),
)
seals = st.builds(
    Seal,
    partition=st.just("credit_transactions_2024q1") | st.text(min_size=1),
    from_time=st.datetimes(timezones=st.just(UTC)),
    to_time=st.datetimes(timezones=st.just(UTC)),
    tree=st.lists(st.binary(min_size=32, max_size=32), max_size=5).map(tree_of),
    sums=st.lists(sums, max_size=3),
)


@given(seal=seals)
def test_a_seal_says_what_the_rows_are_whoever_seals_it_and_when(seal: Seal) -> None:
    unsigned = seal.text(UNSIGNED, NOW)
    signed = KEY.sign(seal.text(KEY.name, NOW))

    assert seal.body() == body_of(unsigned) == body_of(signed)
    assert text_of(signed) == open_note(signed, [KEY.verifying])
    assert (False, True) == (is_signed(unsigned), is_signed(signed))
    assert 7 + len(seal.sums) == len(unsigned.splitlines())


@given(seal=seals, other=seals)
def test_two_seals_are_one_text_only_if_they_are_one(seal: Seal, other: Seal) -> None:
    changed = msgspec.structs.replace(seal, tree=other.tree, sums=other.sums)

    assert (seal == changed) == (seal.body() == changed.body())
    assert (seal == other) == (seal.body() == other.body())


def test_a_seal_as_it_is_published() -> None:
    seal = Seal(
        partition="credit_transactions_2024q1",
        from_time=datetime(2024, 1, 1, tzinfo=UTC),
        to_time=datetime(2024, 4, 1, tzinfo=UTC),
        tree=tree_of([b"\1" * 32, b"\2" * 32, b"\3" * 32]),
        sums=[
            Sum(kind="consume", transactions=2, amount=15),
            Sum(kind="topup", transactions=1, amount=100),
        ],
    )

    assert (
        "example.com/credits/seal\n3\n34lolseZUx8f0eVWzqJqaYmrBoU7y/3T5PUJemEfZY8=\n"
        "partition credit_transactions_2024q1\n"
        "from 2024-01-01T00:00:00.000000Z\nto 2024-04-01T00:00:00.000000Z\n"
        "consume 2 15\ntopup 1 100\ntime 2026-11-28T05:00:00.000000Z\n"
    ) == seal.text("example.com/credits", NOW)
