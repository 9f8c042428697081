"""Rows cut from a binary COPY are the chain's canonical bytes, in whatever pieces they arrive."""

from hypothesis import given
from hypothesis import strategies as st
from tests.copied import copied_stream, transactions

from tollkeeper.credits.chain import unlinked
from tollkeeper.credits.chain_rows import ChainRow, ChainRows
from tollkeeper.credits.model import Transaction


def cut(stream: bytes, places: list[int]) -> list[ChainRow]:
    rows, reader, before = [], ChainRows(), 0
    for place in [*sorted(place % len(stream) for place in places), len(stream)]:
        rows += list(reader.feed(bytearray(stream[before:place])))
        before = place
    reader.finish()
    return rows


@given(st.lists(transactions, max_size=5), st.lists(st.integers(0), max_size=8))
def test_rows_are_what_is_hashed_however_the_stream_is_cut(
    written: list[Transaction], places: list[int]
) -> None:
    rows = cut(copied_stream(written), places)

    assert [
        (
            each.shard, each.account_id.encode(), each.hash, each.sequence, each.kind.encode(),
            each.amount, each.balance, each.reserved, each.freed or 0, unlinked(each)[1:],
        )
        for each in written
    ] == rows  # fmt: skip


@given(st.lists(transactions, min_size=1, max_size=2))
def test_a_stream_that_ends_early_is_noticed(written: list[Transaction]) -> None:
    """At every place: a cut never looks like the end."""
    stream = copied_stream(written)
    for place in range(len(stream)):
        reader = ChainRows()
        for _ in reader.feed(stream[:place]):
            pass
        try:
            reader.finish()
        except ValueError:
            continue
        raise AssertionError(f"cut at {place} of {len(stream)}")
