"""Ids: the bits of RFC 9562, the shard in the last byte, and what can be read back from them."""

import hashlib
from datetime import UTC, datetime, timedelta
from functools import reduce
from uuid import RFC_4122, UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.kernel.ids import (
    ENTROPY_BITS,
    TOKEN_BYTES,
    compose_id,
    entropy_in_blocks,
    entropy_of,
    milliseconds_since_epoch,
    mint_key,
    shard_of,
    system_entropy,
    system_token,
    uuid7_milliseconds,
)

NOW = datetime(2022, 2, 22, 19, 22, 22, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
moments_ms = st.integers(0, 2**48 - 1)
moments = st.timedeltas(timedelta(0), timedelta(days=36_500)).map(lambda age: EPOCH + age)
entropies = st.integers(0, 2**ENTROPY_BITS - 1)
shards = st.integers(0, 255)


def test_the_example_of_the_rfc() -> None:
    """RFC 9562, appendix A.6: 017F22E2-79B0-7CC3-98C4-DC0C0C07398F."""
    example = UUID("017F22E2-79B0-7CC3-98C4-DC0C0C07398F")
    entropy = 0xCC3 << 54 | 0x18C4DC0C0C0739

    assert 0x17F22E279B0 == milliseconds_since_epoch(NOW)
    assert example == compose_id(0x17F22E279B0, entropy, 0x8F)
    assert entropy == entropy_of(example)


@given(moments_ms, entropies, shards)
def test_every_part_of_an_id_is_read_back(moment_ms: int, entropy: int, shard: int) -> None:
    made = compose_id(moment_ms, entropy, shard)

    assert (7, RFC_4122) == (made.version, made.variant)
    assert shard == made.bytes[15]
    assert entropy == entropy_of(made)
    assert moment_ms == uuid7_milliseconds(str(made))


@given(moments_ms, entropies, entropies, shards)
def test_ids_sort_by_time(moment_ms: int, one: int, other: int, shard: int) -> None:
    later = compose_id(moment_ms, other, shard)

    assert moment_ms == 0 or compose_id(moment_ms - 1, one, shard) < later


def test_the_shard_is_the_first_byte_of_the_digest() -> None:
    assert hashlib.sha256("Grüße".encode()).digest()[0] == shard_of("Grüße")
    assert 256 == len({shard_of(str(number)) for number in range(5_000)})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "017f22e2-79b0-7cc3-98c4-dc0c0c07398",
        "017f22e279b07cc398c4dc0c0c07398f",
        "017f22e2-79b0-4cc3-98c4-dc0c0c07398f",
        "017f22e2-79b0-7cc3-c8c4-dc0c0c07398f",
        "017f22e2-79b0-7cc3-98c4-dc0c0c07398g",
        "017f22e279b0--7cc3-98c4-dc0c0c07398f",
    ],
)
def test_what_is_no_uuid7_has_no_time(text: str) -> None:
    assert uuid7_milliseconds(text) is None


def test_capital_letters_are_a_uuid7_too() -> None:
    assert 0x17F22E279B0 == uuid7_milliseconds("017F22E2-79B0-7CC3-98C4-DC0C0C07398F")


def test_a_minted_key_carries_its_time() -> None:
    assert 0x17F22E279B0 == uuid7_milliseconds(mint_key(NOW, system_entropy()))


@given(moments, entropies)
def test_a_minted_key_is_the_text_of_an_id(moment: datetime, entropy: int) -> None:
    composed = compose_id(milliseconds_since_epoch(moment), entropy, entropy & 0xFF)

    assert str(composed) == mint_key(moment, entropy)


@given(
    st.text(alphabet="0123456789abcdefABCDEF789-", min_size=34, max_size=38) | st.uuids().map(str)
)
def test_only_the_canonical_text_of_a_uuid7_has_a_time(text: str) -> None:
    try:
        identifier = UUID(text)
    except ValueError:
        expected = None
    else:
        canonical = identifier.version == 7 and str(identifier) == text.lower()
        expected = identifier.int >> 80 if canonical else None

    assert expected == uuid7_milliseconds(text)


def test_drawn_entropy_fits_and_does_not_repeat_also_past_the_end_of_a_block() -> None:
    draw = entropy_in_blocks()
    drawn = [draw() for _ in range(1_000)] + [system_entropy() for _ in range(1_000)]

    assert 2_000 == len(set(drawn))
    assert 0 <= min(drawn)
    assert ENTROPY_BITS == max(drawn).bit_length()
    # All bits vary: none is lost when the bytes are cut down.
    assert 2**ENTROPY_BITS - 1 == reduce(int.__or__, drawn)


def test_secrets_are_long_and_differ() -> None:
    assert TOKEN_BYTES == len(system_token())
    assert system_token() != system_token()
