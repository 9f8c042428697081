import json
from collections.abc import Iterator
from typing import Annotated

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from litestar.types import Receive, ReceiveMessage

from tollkeeper.credits.messages import OpenAccountBody
from tollkeeper.web.body import MAX_ECHO_LENGTH, decode_body, fault_of, read_body
from tollkeeper.web.errors import FieldFault, RequestAborted, RequestInvalid

Name = Annotated[str, msgspec.Meta(max_length=3)]
Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


class Item(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    amount: Annotated[int, msgspec.Meta(gt=0, le=2**63 - 1)]
    name: str = ""


class Order(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    items: list[Item]
    labels: dict[Name, int] = {}
    metadata: dict[str, object] | None = None


ORDER = msgspec.json.Decoder(Order)


def fault_in(body: bytes) -> FieldFault:
    with pytest.raises(RequestInvalid) as raised:
        decode_body(ORDER, body)
    (fault,) = raised.value.errors
    return fault


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        (b'{"items": [{"amount": 0}]}', "items[0].amount", ">= 1"),
        (b'{"items": [{"amount": 9223372036854775808}]}', "items[0].amount", "<="),
        (b'{"items": [{"amount": 1.5}]}', "items[0].amount", "float"),
        (b'{"items": [{"amount": true}]}', "items[0].amount", "bool"),
        (b'{"items": [{}]}', "items[0].amount", "is required"),
        (b'{"items": [{"amount": 1, "x": 2}]}', "items[0].x", "not known"),
        (b'{"items": [], "x`y": 2}', "x`y", "not known"),
        (b"{}", "items", "is required"),
        (b'{"items": [], "labels": {"a": "b"}}', "labels[...]", "str"),
        (b'{"items": [], "labels": {"abcd": 1}}', "labels", "length <= 3"),
        (b"[]", "body", "array"),
        (b"null", "body", "null"),
        (b"", "body", "empty"),
        (b"{", "body", "not JSON"),
        (b'{"items": [{"amount": NaN}]}', "body", "not JSON"),
        (b'{"items": []} x', "body", "not JSON"),
        (b"amount=1", "body", "not JSON"),
        (b'\xef\xbb\xbf{"items": []}', "body", "not JSON"),
        (b'{"items": [{"amount": 1, "name": "\xff"}]}', "body", "UTF-8"),
        (b'{"items": [{"amount": 1, "name": "\\ud800"}]}', "body", "surrogate"),
        (b'{"items": [{"amount": 1, "name": "\\udc00x"}]}', "body", "surrogate"),
        (b'{"items": [{"amount": 1, "name": "\\ud83d\\ude00"', "body", "truncated"),
        (b'{"items": [{"amount": 1, "name": "\\\\ud800"', "body", "truncated"),
        (b'{"items": [], "items": []}', "items", "more than once"),
        (b'{"items": [{"amount": 1, "amount": 2}]}', "amount", "more than once"),
        (b'{"items": [{"amount": 1, "\\u0061mount": 2}]}', "amount", "more than once"),
        (b'{"items": [{"amount": 1, "name": "", "name": "a"}]}', "name", "more than once"),
        (b'{"items": [{"amount": 1, "name": "\\u003a", "name": ":"}]}', "name", "more than once"),
        (b'{"items": [], "metadata": {"a": {"b": 1, "b": 1}}}', "b", "more than once"),
        (b'{"items": [], "metadata": {"n": %d, "n": 1}}' % 10**400, "n", "more than once"),
        (b'{"items": [], "metadata": {"n": 1e999}}', "metadata[...]", "out of range"),
    ],
)
def test_fault_names_its_field(body: bytes, field: str, words: str) -> None:
    fault = fault_in(body)

    assert field == fault.field
    assert words in fault.detail


def test_deep_nesting_is_a_fault_and_no_crash() -> None:
    body = b'{"items": [], "metadata": {"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}"

    assert FieldFault(field="body", detail="is nested too deeply") == fault_in(body)


def test_a_pattern_is_named_as_people_write_it() -> None:
    with pytest.raises(msgspec.ValidationError) as refused:
        msgspec.json.decode(b'{"account_id":"a b","tenant_id":"t"}', type=OpenAccountBody)

    found = fault_of(refused.value)

    assert "account_id" == found.field
    assert found.detail.startswith("must match ^[A-Za-z0-9][A-Za-z0-9._~:@!$&'()*+,;=|-]{0,127}$")


def test_fault_repeats_little_of_a_hostile_body() -> None:
    fault = fault_in(b'{"items": [], "' + b"x" * 10_000 + b'": 1}')

    assert "x" * MAX_ECHO_LENGTH == fault.field


def test_a_hostile_name_of_megabytes_is_answered_with_its_place() -> None:
    fault = fault_in(b'{"items": [{"amount": 1, "' + b"4 " * 2_000_000 + b'": 1}]}')

    assert fault.field.startswith("items[0].")
    assert "is not known here" == fault.detail


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    ),
    st.booleans(),
)
def test_a_document_is_refused_when_a_member_of_it_is_repeated(value: Json, escapes: bool) -> None:
    text = json.dumps({"items": [], "metadata": {"x": value}}, ensure_ascii=escapes)
    repeated = text.replace('"x":', '"x": [":"], "x":', 1)

    if not has_lone_surrogate(text):
        assert {"x": value} == decode_body(ORDER, text.encode()).metadata
        with pytest.raises(RequestInvalid):
            decode_body(ORDER, repeated.encode())


def has_lone_surrogate(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in str(json.loads(text)))


def test_valid_body_is_decoded() -> None:
    assert Order(items=[Item(amount=3)]) == decode_body(ORDER, b'{"items": [{"amount": 3}]}')


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_invalid(body: bytes) -> None:
    try:
        decode_body(ORDER, body)
    except RequestInvalid as error:
        assert error.errors  # noqa: PT017  # either outcome is right


def receiving(*messages: ReceiveMessage) -> Receive:
    remaining: Iterator[ReceiveMessage] = iter(messages)

    async def receive() -> ReceiveMessage:
        return next(remaining)

    return receive


async def test_body_is_joined_from_its_parts() -> None:
    receive = receiving(
        {"type": "http.request", "body": b"ab", "more_body": True},
        {"type": "http.request", "body": b"", "more_body": True},
        {"type": "http.request", "body": b"c", "more_body": False},
    )

    assert b"abc" == await read_body(receive)


async def test_caller_who_leaves_early_is_not_served() -> None:
    receive = receiving(
        {"type": "http.request", "body": b"ab", "more_body": True}, {"type": "http.disconnect"}
    )

    with pytest.raises(RequestAborted):
        await read_body(receive)
