"""What is kept of payment data, example by example."""

import pytest
from tests.cards import PUBLIC_NUMBERS

from tollkeeper.credits.masking import mask_document, mask_payment, mask_text, may_hold_payment

NUMBER_NAMES = (
    "number",
    "card_number",
    "cardNumber",
    "CARD-NUMBER",
    "pan",
    "Primary_Account_Number",
)
CODE_NAMES = ("cvv", "CVC", "cvv2", "CID", "security_code", "securityCode", "c_v_v", "card_cvc")
OTHER_SECRETS = ("pin", "PIN_block", "track1", "track2_data", "Track_Data", "magnetic_stripe")
HOLDER_NAMES = ("holder", "cardholder", "cardholder_name", "name_on_card", "holderName", "name")


@pytest.mark.parametrize("name", NUMBER_NAMES)
@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("4111111111111111", "****-****-****-1111"),
        ("4111 1111 1111 1111", "****-****-****-1111"),
        (4111111111111111, "****-****-****-1111"),
        (4111111111111111.0, "****-****-****-1111"),
        ("4111.1111.1111.1112", "****-****-****-1112"),  # mistyped, and nobody's separators
        ("411111******1111", "****-****-****-1111"),
        ("****-****-****-1111", "****-****-****-1111"),
        ("12", "****-****-****-****"),
        (["4111111111111111", 30569309025904], ["****-****-****-1111", "****-****-****-5904"]),
        ("on file", "on file"),
        (None, None),
    ],
    ids=str,
)
def test_of_a_card_number_the_last_four_digits_are_kept(
    name: str, value: object, kept: object
) -> None:
    assert {name: kept} == mask_payment({name: value})
    assert {"card": {name: kept}} == mask_payment({"card": {name: value}})
    assert {"cards": [{name: kept}]} == mask_payment({"cards": [{name: value}]})


@pytest.mark.parametrize("name", CODE_NAMES + OTHER_SECRETS)
@pytest.mark.parametrize("value", ["123", 1234, "%B4111111111111111^X", {"value": "123"}, None])
def test_of_a_secret_code_nothing_is_kept(name: str, value: object) -> None:
    assert {} == mask_payment({name: value})
    assert {"card": [{}]} == mask_payment({"card": [{name: value}]})


@pytest.mark.parametrize("name", HOLDER_NAMES)
@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("John Doe", "Jo****"),
        ("  jörg", "jö****"),
        ("Ø", "Ø****"),
        ("4111111111111111", "****"),
        (17, "****"),
        ({"first": "John", "last": ["Doe"]}, {"first": "Jo****", "last": ["Do****"]}),
        (None, None),
    ],
    ids=str,
)
def test_of_a_holder_two_letters_are_kept(name: str, value: object, kept: object) -> None:
    assert {name: kept} == mask_payment({name: value})
    assert {name: kept} == mask_payment({name: kept})


def test_the_rest_of_a_payment_is_kept_behind_the_guard() -> None:
    payment = {
        "method": "card",
        "amount": 5000,
        "expires": "12/27",
        "last4": "1111",
        "note": "4111 1111 1111 1111, cvv 123",
        "lines": [5555555555554444, {"378282246310005": True}],
    }

    assert {
        "method": "card",
        "amount": 5000,
        "expires": "12/27",
        "last4": "1111",
        "note": "****-****-****-1111, cvv ***",
        "lines": ["****-****-****-4444", {"****-****-****-0005": True}],
    } == mask_payment(payment)


def test_what_is_no_payment_keeps_its_fields() -> None:
    document = {
        "account": {"number": 4, "holder": "lease-1", "name": "Anna"},
        "cid": 123456,
        "gpio": {"pin": 7, "track": "main"},
        "card": "gold",
        "pan": "ABCDE1234F",
        "model": "small",
        "success": True,
        "request_id": "01a20bde-8028-76e8-8fa8-1bc6b37ddf49",
        "started_us": 1732510015123456,
        "ratio": 0.4111111111111111,
    }

    assert document == mask_document(document)


@pytest.mark.parametrize(
    ("document", "kept"),
    [
        ({"a": ["4111-1111-1111-1111"]}, {"a": ["****-****-****-1111"]}),
        ({"4111111111111111": 4111111111111111}, {"****-****-****-1111": "****-****-****-1111"}),
        ({"a": -4111111111111111}, {"a": "****-****-****-1111"}),
        ({"cvv": "123", "CVC": 999, "pin": 1234, "a": 1}, {"a": 1}),
        ({"payment": {"number": 12, "cid": "1"}}, {"payment": {"number": "****-****-****-****"}}),
        (
            {"source": {"number": "4111111111111111", "holder": "John Doe", "cid": 1}},
            {"source": {"number": "****-****-****-1111", "holder": "Jo****"}},
        ),
        ({"source": {"cvv": 123, "holder": "John Doe"}}, {"source": {"holder": "Jo****"}}),
        ({"cardholder_name": "John Doe"}, {"cardholder_name": "Jo****"}),
        ({"card_number": "4111 1111 1111 1112"}, {"card_number": "****-****-****-1112"}),
        ({"track2": "4111111111111111=2512101"}, {}),
        ({"note": "PIN: 1234"}, {"note": "PIN: ***"}),
    ],
    ids=lambda document: str(document)[:40],
)
def test_payment_data_in_other_documents_is_masked(
    document: dict[str, object], kept: dict[str, object]
) -> None:
    assert kept == mask_document(document)
    assert kept == mask_document(kept)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        *[(f"card {digits}!", f"card ****-****-****-{digits[-4:]}!") for digits in PUBLIC_NUMBERS],
        ("CVV 123", "CVV ***"),
        ("cvc2=1234;", "cvc2=***;"),
        ("security code is 999", "security code is ***"),
        ("pin: 4711", "pin: ***"),
        ("pinned 1234 of 5678, cv 123", "pinned 1234 of 5678, cv 123"),
        ("order 1001", "order 1001"),
    ],
)
def test_free_text(text: str, masked: str) -> None:
    assert masked == mask_text(text)
    assert masked == mask_text(masked)


@pytest.mark.parametrize(
    "name",
    [
        "cvv", "cvv2", "pin", "card_pin", "cvn", "cav2", "security-code", "Card.Number",
        "ccnum", "cc_number", "debit card no", "bank_card_number", "pan", "cc_pan",
        "primary_account_number",
        "cardholder", "card_owner_name", "cc_holder", "cc_owner", "name on card", "payment",
        "payments", "card", "credit_cards", "payment_method", "card_details",
        "card_verification_value",
    ],
)  # fmt: skip
def test_no_name_that_means_something_is_passed_over(name: str) -> None:
    assert may_hold_payment(f'{{"{name}":1}}')


def test_the_look_before_the_work_passes_over_what_is_usual() -> None:
    assert not may_hold_payment('{"model":"small","tokens":1200,"success":true,"at":1732510015.5}')
    assert may_hold_payment('{"a":4111111111111111.0}')
    assert may_hold_payment('{"a":"cvv 123"}')
    assert may_hold_payment(r'{"a":"4111\t1111\t1111\t1111"}')


def test_two_names_that_are_masked_alike_are_one_whatever_their_order() -> None:
    one, other = "4111111111111111", "4111 1111 1111 1111"

    assert mask_document({one: 1, other: 2}) == mask_document({other: 2, one: 1})
    assert {"****-****-****-1111": 1} == mask_document({one: 1})
