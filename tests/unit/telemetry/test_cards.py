"""Which digits are a card number, and which are not."""

import pytest
from tests.cards import PUBLIC_NUMBERS, grouped, passes_luhn

from tollkeeper.telemetry.cards import holds_card, mask_cards


@pytest.mark.parametrize("digits", PUBLIC_NUMBERS)
@pytest.mark.parametrize("separator", ["", " ", "-", "\xa0", "\u2011", "\t", "+", "%20"])
def test_public_test_number_is_masked_to_its_last_four(digits: str, separator: str) -> None:
    text = f"paid with {grouped(digits, separator)}, thanks"

    assert f"paid with ****-****-****-{digits[-4:]}, thanks" == mask_cards(text)
    assert holds_card(text)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("card4111111111111111x", "card****-****-****-1111x"),
        ("4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1", "****-****-****-1111"),
        ("4111111111111111,123,12/27", "****-****-****-1111,123,12/27"),
        ("12 4111 1111 1111 1111", "12 ****-****-****-1111"),
        ("2024-11-25 4111-1111-1111-1111", "2024-11-25 ****-****-****-1111"),
        ("4111111111111111 5555555555554444", "****-****-****-1111 ****-****-****-4444"),
        ("name=%204111111111111111", "name=%20****-****-****-1111"),
        ("%2221-0000-0000-0009", "%****-****-****-0009"),
        ("%C3%A14111111111111111", "%C3%A1****-****-****-1111"),
        ("%224111111111111111", "%22****-****-****-1111"),
        ("100%41111111 11111111", "100%****-****-****-1111"),
        ("/4111%201111%201111%201111/", "/****-****-****-1111/"),
        ("\u0664" + "\u0661" * 15, "****-****-****-1111"),
        ("4111111111111111.", "****-****-****-1111."),
        ("face4111111111111111", "face****-****-****-1111"),
        ("%B4111111111111111^DOE/J^27", "%B****-****-****-1111^DOE/J^27"),
    ],
)
def test_card_number_is_found_where_it_stands(text: str, masked: str) -> None:
    assert masked == mask_cards(text)
    assert masked == mask_cards(masked)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "order 1001",
        "4111 1111 1111 1112",  # the check digit
        "1111111111111117",  # no issuer
        "41111111111111116",  # no length of this issuer's
        "4111111111111111" * 2,
        "411111111111",
        "4111  1111  1111  1111",  # columns of a table
        "550e8400-e29b-41d4-a716-446655440000",
        "urn:uuid:00000000-0000-4000-8000-411111111111",
        "2024-11-25T04:46:55.123456Z",
        "2024-11-25 04-46-55",
        "1732510015123 1732510015123456 1732510015123456789",
        "0.4111111111111111",
        "4111111111111111.50",
        "1 234 567 890 123 456",
        "4 111 111 111 111 111",
        "4,111,111,111,111,111",
        "e3b04111111111111111c14921c0a6f2a1b2c3d4",
        "0xab12cd344111111111111111ab12cd34",
        "+49 30 1234567, +1 202 555 0100",
        "****-****-****-1111",
    ],
)
def test_other_numbers_are_spared(text: str) -> None:
    assert text == mask_cards(text)
    assert not holds_card(text)


def test_numbers_that_overlap_are_masked_as_one() -> None:
    """Nothing of a number may stay because another one began before it."""
    first = next(f"4{n}" for n in range(100, 1_000) if passes_luhn(f"4{n}411111111111"))

    assert "****-****-****-1111" == mask_cards(f"{first} 4111 1111 1111 1111")


def test_shown_digits_do_not_begin_another_number() -> None:
    last = next(f"{n:04}" for n in range(10_000) if passes_luhn(f"444400000000{n:04}"))

    masked = mask_cards(f"5555555555554444 0000 0000 {last}")

    assert f"****-****-****-{last}" == masked
    assert masked == mask_cards(masked)
    assert not holds_card(masked)


def test_a_mask_in_front_hides_nothing() -> None:
    assert "1111 1111" not in mask_cards("****-****-****-4111 1111 1111 1111")
