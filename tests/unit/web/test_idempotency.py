import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.web.errors import IdempotencyKeyInvalid, IdempotencyKeyMissing
from tollkeeper.web.idempotency import idempotency_key

VISIBLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=255)


def headers(*values: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"x"), *((b"idempotency-key", value) for value in values)]


@given(VISIBLE)
def test_visible_ascii_is_a_key(key: str) -> None:
    assert key == idempotency_key(headers(key.encode()))


def test_missing_key_is_refused() -> None:
    with pytest.raises(IdempotencyKeyMissing) as raised:
        idempotency_key(headers())

    assert "Idempotency-Key" == raised.value.header


@pytest.mark.parametrize("value", [b"", b"a b", b"\x7f", b"a\n", b"\xc3\xa9", b"x" * 256, b"\x00"])
def test_unusable_key_is_refused(value: bytes) -> None:
    with pytest.raises(IdempotencyKeyInvalid):
        idempotency_key(headers(value))


def test_two_keys_are_refused_even_if_equal() -> None:
    with pytest.raises(IdempotencyKeyInvalid):
        idempotency_key(headers(b"k", b"k"))


def test_longest_key_is_taken() -> None:
    assert "x" * 255 == idempotency_key(headers(b"x" * 255))
