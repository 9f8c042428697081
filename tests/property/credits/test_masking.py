"""Wherever a card number stands in a document, nothing of it is kept but its last four digits."""

import json

from hypothesis import given
from hypothesis import strategies as st
from tests.cards import card_numbers, trace_of, written
from tests.operations import documents, texts

from tollkeeper.credits.masking import mask_document, mask_payment, mask_text, may_hold_payment
from tollkeeper.credits.requests import canonical_metadata, canonical_payment

NAMES = st.sampled_from(
    [
        "number",
        "cardNumber",
        "pan",
        "cvv",
        "pin",
        "holder",
        "track2",
        "payment",
        "card",
        "note",
        "a",
    ]
)


@st.composite
def paid(draw: st.DrawFn) -> tuple[dict[str, object], str]:
    """A document with a card number somewhere in it: a value, a name, text, a number, nested."""
    digits = draw(card_numbers())
    value: object = draw(
        st.sampled_from([digits, int(digits)])
        | st.builds("{}{}{}".format, letters, written(digits), letters)
    )
    document: dict[str, object] = {draw(NAMES): value}
    if draw(st.booleans()):
        document[draw(written(digits))] = value
    for _ in range(draw(st.integers(0, 4))):
        inner: object = [document] if draw(st.booleans()) else document
        document = {**draw(documents), draw(NAMES | texts): inner}
    return document, digits


letters = st.text("abcxyzABCXYZ .,;:/()", max_size=5).map(lambda text: text.rstrip("."))


@given(paid())
def test_nothing_of_a_card_number_is_kept(case: tuple[dict[str, object], str]) -> None:
    document, digits = case
    for masked in (mask_document(document), mask_payment(document)):
        assert trace_of(digits).search(json.dumps(masked, ensure_ascii=False)) is None


@given(paid())
def test_what_the_first_look_passes_over_needs_no_mask(case: tuple[dict[str, object], str]) -> None:
    document, _ = case

    assert may_hold_payment(json.dumps(document, ensure_ascii=False))


@given(documents)
def test_a_document_that_is_passed_over_is_as_it_would_be_masked(
    document: dict[str, object],
) -> None:
    assert json.loads(canonical_metadata(document)) == mask_document(document)


@given(paid().map(lambda case: case[0]) | documents)
def test_masking_twice_is_masking_once(document: dict[str, object]) -> None:
    once, paid_once = mask_document(document), mask_payment(document)

    assert once == mask_document(once)
    assert paid_once == mask_payment(paid_once)


@given(st.text())
def test_masking_text_twice_is_masking_it_once(text: str) -> None:
    assert mask_text(text) == mask_text(mask_text(text))


@given(documents)
def test_what_is_kept_is_canonical(document: dict[str, object]) -> None:
    text = canonical_payment(document)

    assert text == canonical_payment(json.loads(text))
