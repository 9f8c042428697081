import pytest
from hypothesis import given
from hypothesis import strategies as st
from litestar.types import Scope

from tollkeeper.web.body import MAX_ECHO_LENGTH
from tollkeeper.web.errors import FieldFault, RequestInvalid
from tollkeeper.web.query import query_of, refuse_query


def scope_of(query: bytes) -> Scope:
    return {"query_string": query}  # type: ignore[return-value]  # the key it reads


def fault_in(query: bytes, *known: str) -> FieldFault:
    with pytest.raises(RequestInvalid) as raised:
        query_of(scope_of(query), *known)
    (fault,) = raised.value.errors
    return fault


def test_known_parameters_are_returned_decoded() -> None:
    found = query_of(scope_of(b"after=%C3%A9+1&limit="), "after", "limit")

    assert {"after": "é 1", "limit": ""} == found


@pytest.mark.parametrize("query", [b"", b"&", b"&&"])
def test_a_query_without_parameters_is_none(query: bytes) -> None:
    assert {} == query_of(scope_of(query))


@pytest.mark.parametrize(
    ("query", "field"),
    [
        (b"limt=5", "limt"),
        (b"limit=5&limt=5", "limt"),
        (b"Limit=5", "Limit"),
        (b"limt", "limt"),
        (b"=5", "query"),
        (b"l%00=5", "l\0"),
        (b"%FF=5", "\N{REPLACEMENT CHARACTER}"),
        (b"\xff=5", "ÿ"),
        (b"x" * 5_000, "x" * MAX_ECHO_LENGTH),
    ],
)
def test_an_unknown_parameter_is_named(query: bytes, field: str) -> None:
    fault = fault_in(query, "after", "limit")

    assert field == fault.field
    assert "after, limit" in fault.detail


def test_a_route_that_takes_none_says_so() -> None:
    with pytest.raises(RequestInvalid, match=r"limit: .* takes no query parameters"):
        refuse_query(scope_of(b"limit=5"))


def test_a_parameter_given_twice_is_refused() -> None:
    fault = fault_in(b"limit=5&limit=6", "limit")

    assert FieldFault(field="limit", detail="was given more than once") == fault


@given(st.binary())
def test_any_bytes_are_parameters_or_a_fault(query: bytes) -> None:
    try:
        found = query_of(scope_of(query), "limit")
    except RequestInvalid as error:
        assert error.errors[0].field  # noqa: PT017  # either way is right
    else:
        assert found.keys() <= {"limit"}
