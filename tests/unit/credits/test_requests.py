"""What a caller may send, at the edges of each rule."""

import hashlib
import re
from collections.abc import Callable
from typing import Any

import pytest
from tests.cards import PUBLIC_NUMBERS, grouped
from tests.ledger import consume, opening, topup

from tollkeeper.credits import requests
from tollkeeper.credits.errors import InvalidRequest
from tollkeeper.credits.requests import ID_PATTERN, KEY_PATTERN, account_id_of, canonical_metadata


@pytest.mark.parametrize("text", ["a", "0", "x" * 128, "acme-prod", "a._~:@!$&'()*+,;=|-", "A:b@c"])
def test_ids_that_are_taken(text: str) -> None:
    assert text == account_id_of(text)


@pytest.mark.parametrize(
    "text",
    ["", "x" * 129, "-a", ".", "..", "a/b", "a b", "a\n", "a\0", "a%2F", "Grüße", "a?", "a#", " a"],
)
def test_ids_that_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        account_id_of(text)

    assert ["account_id"] == [problem.field for problem in refused.value.errors]


@pytest.mark.parametrize("text", ["k", "x" * 255, "~!", "01a20bde-8028-76e8-8fa8-1bc6b37ddf49"])
def test_keys_that_are_taken(text: str) -> None:
    assert re.match(KEY_PATTERN, text)
    assert hashlib.sha256(text.encode()).digest() == consume("ann", 1, text).key_hash


@pytest.mark.parametrize("text", ["", "x" * 256, "a b", "a\n", "\x7f", "ü"])
def test_keys_that_are_refused(text: str) -> None:
    assert not re.match(KEY_PATTERN, text)


def test_no_id_is_two_steps_of_a_path() -> None:
    """Ids stand in a URL as they are: none may look like `.` or `..`, or have a slash."""
    assert not any(re.match(ID_PATTERN, text) for text in (".", "..", "/", "a/..", "~"))


NESTED_8: dict[str, object] = {"a": {"a": {"a": {"a": {"a": {"a": {"a": {}}}}}}}}
# `{"":"..."}` is seven bytes around its text.
METADATA_ROOM = requests.METADATA_LIMIT_BYTES - 7
LARGEST: dict[str, object] = {"": "x" * METADATA_ROOM}


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        ({}, "{}"),
        ({"b": 1, "a": [1.5, None, True]}, '{"a":[1.5,null,true],"b":1}'),
        ({"Ü": "\U0001f600"}, '{"Ü":"\U0001f600"}'),
        ({"path": "\\u0000"}, '{"path":"\\\\u0000"}'),
        ({"n": 2**64 - 1}, '{"n":18446744073709551615}'),
        (NESTED_8, '{"a":' * 7 + "{}" + "}" * 7),
        (LARGEST, '{"":"' + "x" * (requests.METADATA_LIMIT_BYTES - 7) + '"}'),
    ],
    ids=["empty", "sorted", "unicode", "text like an escape", "large number", "deep", "largest"],
)
def test_metadata_becomes_canonical_json(metadata: dict[str, object], text: str) -> None:
    assert text == canonical_metadata(metadata)


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": {"a": NESTED_8}},
        {"metadata": {"a": [[[[[[[[]]]]]]]]}},
        {"metadata": {**LARGEST, "x": 1}},
        {"metadata": {"a": "NUL \0"}},
        {"metadata": {"\0": 1}},
        {"metadata": {"a": "\ud800"}},
        {"metadata": {"a": object()}},
        {"payment": {"a": NESTED_8}},
        {"payment": {**LARGEST, "x": 1}},
        {"payment": {"a": "NUL \0"}},
        {"payment": {"a": "\ud800"}},
        {"description": ""},
        {"description": "x" * 501},
        {"description": "\0"},
        {"description": "\udfff"},
    ],
    ids=lambda fields: str(fields)[:40],
)
def test_what_cannot_be_kept_names_its_field(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        topup("ann", 1, place="operations[3].", **fields)

    assert [f"operations[3].{next(iter(fields))}"] == [p.field for p in refused.value.errors]


def test_a_number_that_is_no_number_is_kept_as_null() -> None:
    """JSON has none, and over HTTP none arrives; in a batch of our own it is no reason to fail."""
    assert '{"a":null}' == canonical_metadata({"a": float("nan")})


@pytest.mark.parametrize("text", ["x" * 500, "Grüße", "\n", "\U0001f600" * 500])
def test_descriptions_that_are_taken(text: str) -> None:
    assert text == topup("ann", 1, description=text).description


def test_everything_a_request_asks_is_in_its_fingerprint() -> None:
    asked = [
        topup("ann", 1),
        topup("ann", 2),
        consume("ann", 1),
        topup("ann", 1, description="a"),
        topup("ann", 1, metadata={}),
        topup("ann", 1, description="a", metadata={}),
        topup("ann", 1, description="a{}"),
        topup("ann", 1, payment={}),
        topup("ann", 1, metadata={}, payment={}),
        topup("ann", 1, description="a", metadata={}, payment={}),
        topup("ann", 1, description="a{}", payment={}),
    ]

    assert len(asked) == len({operation.fingerprint for operation in asked})
    assert topup("ann", 1, "one").fingerprint == topup("bob", 1, "other").fingerprint


def test_a_request_is_masked_before_anything_is_made_of_it() -> None:
    asked = topup(
        "ann",
        1,
        description="4111 1111 1111 1111",
        metadata={"b": [{"card_number": 4111111111111111}], "a": "cvv 123"},
        payment={"pan": "4111-1111-1111-1111", "cvv": "123", "holder": "John Doe"},
    )

    assert "****-****-****-1111" == asked.description
    assert '{"a":"cvv ***","b":[{"card_number":"****-****-****-1111"}]}' == asked.metadata
    assert '{"holder":"Jo****","pan":"****-****-****-1111"}' == asked.payment
    assert asked.fingerprint == requests.fingerprint(
        asked.kind, 1, asked.description, asked.metadata, payment=asked.payment
    )


def test_the_fingerprint_knows_only_what_is_kept() -> None:
    """Else it would tell a card number to whoever tries them all."""
    one = topup("ann", 1, payment={"number": "4111111111111111", "cvv": "123"})
    other = topup("ann", 1, payment={"number": "****-****-****-1111"})

    assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize("digits", PUBLIC_NUMBERS)
@pytest.mark.parametrize("form", [str, lambda digits: grouped(digits, "-"), "order-{}".format])
def test_card_number_is_no_name(digits: str, form: Callable[[str], str]) -> None:
    text = form(digits)
    refusals: dict[str, Callable[[], object]] = {
        "account_id": lambda: opening(text),
        "operations[3].account_id": lambda: topup(text, 1, place="operations[3]."),
        "tenant_id": lambda: opening("ann", text),
        "Idempotency-Key": lambda: topup("ann", 1, text),
        "operations[3].idempotency_key": lambda: topup("ann", 1, text, place="operations[3]."),
    }
    for field, refused in refusals.items():
        with pytest.raises(InvalidRequest) as raised:
            refused()

        assert [field] == [problem.field for problem in raised.value.errors]
        assert digits[:4] not in str(raised.value)
    with pytest.raises(InvalidRequest):
        account_id_of(text)


@pytest.mark.parametrize("field", ["description", "metadata", "payment"])
def test_a_mask_must_not_pass_the_limits(field: str) -> None:
    """A mask has 19 characters, more than some card numbers have digits."""
    room = requests.DESCRIPTION_LIMIT if field == "description" else METADATA_ROOM
    number = "378282246310005"
    largest, masked = "x" * (room - 15) + number, "x" * (room - 19) + number
    form: Any = str if field == "description" else lambda text: {"": text}

    with pytest.raises(InvalidRequest) as refused:
        topup("ann", 1, **{field: form(largest)})

    assert [field] == [problem.field for problem in refused.value.errors]
    assert "****-0005" in str(getattr(topup("ann", 1, **{field: form(masked)}), field))
