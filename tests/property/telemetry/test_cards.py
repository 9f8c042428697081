"""Every card number is masked wherever it stands; what only looks like one is left alone."""

import hashlib
from datetime import UTC, datetime

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.cards import ISSUERS, card_numbers, passes_luhn, trace_of, written

from tollkeeper.telemetry.cards import holds_card, mask_cards

# Next to a number: anything but more digits, separators, and the point of a decimal fraction.
around = st.text(st.characters(exclude_categories=["Nd", "Cs"]), max_size=12).filter(
    lambda text: not text.startswith(".")
)
digit_texts = st.text("0123456789 -\t\xa0+.%,/abc", max_size=80)


@pytest.mark.parametrize("issuer", sorted(ISSUERS))
@given(data=st.data(), before=around, after=around)
def test_card_number_is_masked_between_any_letters(
    issuer: str, data: st.DataObject, before: str, after: str
) -> None:
    digits = data.draw(card_numbers(issuer))
    number = data.draw(written(digits))

    masked = mask_cards(before + number + after)

    assert f"{before}****-****-****-{digits[-4:]}{after}" == masked
    assert trace_of(digits).search(masked) is None
    assert masked == mask_cards(masked)
    assert holds_card(before + number + after)


@given(st.lists(st.one_of(card_numbers(), digit_texts, around), max_size=6))
def test_masking_twice_is_masking_once(pieces: list[str]) -> None:
    masked = mask_cards("".join(pieces))

    assert masked == mask_cards(masked)
    assert not holds_card(masked)


@given(
    st.lists(card_numbers(), min_size=2, max_size=4), st.sampled_from([" ", "-", ", ", "/", "x"])
)
def test_of_several_numbers_none_is_left(numbers: list[str], between: str) -> None:
    masked = mask_cards(between.join(numbers))

    assert [] == [digits for digits in numbers if digits in masked]


@given(around, st.uuids(), around)
def test_uuid_is_spared(before: str, identifier: object, after: str) -> None:
    text = f"{before} {identifier} {after}"

    assert text == mask_cards(text)


@given(st.binary(), st.sampled_from(["md5", "sha1", "sha224", "sha256", "sha384", "sha512"]))
def test_digest_is_spared(content: bytes, algorithm: str) -> None:
    digest = hashlib.new(algorithm, content).hexdigest()

    assert f"{algorithm}:{digest}" == mask_cards(f"{algorithm}:{digest}")
    assert digest.upper() == mask_cards(digest.upper())


@given(
    st.datetimes(datetime(2002, 1, 1), datetime(2039, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    st.integers(0, 999),
)
def test_timestamp_is_spared(moment: datetime, nanoseconds: int) -> None:
    microseconds = round(moment.timestamp()) * 1_000_000 + moment.microsecond
    texts = [
        moment.isoformat(),
        moment.isoformat(sep=" ", timespec="milliseconds"),
        moment.strftime("%Y-%m-%d %H-%M-%S"),
        moment.strftime("%Y%m%d%H%M%S"),
        str(microseconds // 1_000_000),
        str(microseconds // 1_000),
        str(microseconds),
        str(microseconds * 1_000 + nanoseconds),
    ]

    assert texts == [mask_cards(text) for text in texts]


@given(st.integers(0, 2**63 - 1), st.sampled_from([",", ".", " ", "\u202f", "'", "_"]))
def test_amount_with_thousands_or_decimals_is_spared(amount: int, separator: str) -> None:
    grouped = f"{amount:,}".replace(",", separator)
    texts = [f"EUR {grouped}", f"{amount // 100}.{amount % 100:02}", f"0.{amount:019}"]

    assert texts == [mask_cards(text) for text in texts]


@given(st.text("0123456789", min_size=1, max_size=60).filter(lambda digits: len(digits) > 19))
def test_longer_runs_of_digits_are_spared(digits: str) -> None:
    assert digits == mask_cards(digits)


@given(st.text("0123456789", min_size=13, max_size=19))
def test_digits_that_fail_the_check_are_spared(digits: str) -> None:
    assume(not passes_luhn(digits))

    assert digits == mask_cards(digits)


@given(st.text())
def test_text_without_thirteen_digits_is_spared(text: str) -> None:
    assume(sum(character.isdecimal() for character in text) < 13)

    assert text == mask_cards(text)
