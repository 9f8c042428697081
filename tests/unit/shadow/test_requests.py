"""Values and ids from outside: taken exactly, or refused."""

from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.shadow import requests
from tollkeeper.shadow.model import MICRO, VALUE_LIMIT

NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "micro"),
    [
        (b"0", 0), (b"1", MICRO), (b"-1", -MICRO), (b"-0", 0), (b"0.1", 100_000),
        (b"-0.000001", -1), (b"1.5000000000", 1_500_000), (b"1e3", 1_000 * MICRO),
        (b"2.5E-3", 2_500), (b"1000000000000", VALUE_LIMIT * MICRO),
        (b"999999999999.123456", 999_999_999_999_123_456), (b"0e99", 0),
    ],
)  # fmt: skip
def test_a_value_is_taken_to_the_last_decimal(text: bytes, micro: int) -> None:
    assert micro == requests.micro_of(text)


@pytest.mark.parametrize(
    "text",
    [
        b"0.0000001", b"1000000000001", b"-1000000000000.000001", b"1e99", b"1e-7", b"null", b"",
        b'"1"', b"true", b"[1]", b"{}", b"1" * 5_000, b"0." + b"0" * 5_000, b"1e999999999", b"-",
        b".5", b"1.-5", b"NaN",
    ],
)  # fmt: skip
def test_what_is_not_exact_or_too_large_is_refused(text: bytes) -> None:
    assert requests.micro_of(text) is None


@given(st.integers(-VALUE_LIMIT * MICRO, VALUE_LIMIT * MICRO), st.booleans())
def test_every_value_comes_back(micro: int, has_exponent: bool) -> None:
    sign, digits = "-" if micro < 0 else "", f"{abs(micro):07d}"
    text = f"{sign}{digits[:-6]}.{digits[-6:]}"
    if has_exponent:
        text = f"{micro}e-6"

    assert micro == requests.micro_of(text.encode())


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_exact_or_refused(value: float) -> None:
    text = msgspec.json.encode(value)
    exact = Fraction(text.decode()) * MICRO
    is_possible = exact.denominator == 1 and abs(exact) <= VALUE_LIMIT * MICRO

    assert requests.micro_of(text) == (exact if is_possible else None)


@pytest.mark.parametrize("text", ["a", "ü" * 64, "a b", "a" * 128, "4111 1111", "\n", "/"])
def test_a_unit_has_any_text(text: str) -> None:
    assert requests.is_unit_id(text)


@pytest.mark.parametrize("text", ["", "a" * 129, "ü" * 65, "a\0", "\ud800"])
def test_a_text_that_cannot_be_kept_names_no_unit(text: str) -> None:
    assert not requests.is_unit_id(text)


@pytest.mark.parametrize("text", ["", "a b", "a/b", "a\n", "-a", "ü", "a" * 129])
def test_an_experiment_is_named_by_what_a_path_can_have(text: str) -> None:
    assert not requests.is_path_id(text)


def test_nothing_is_in_the_future_or_before_time_began() -> None:
    zone = timezone(timedelta(hours=23, minutes=59))
    far, early = datetime.max.replace(tzinfo=zone), datetime.min.replace(tzinfo=zone)

    assert requests.moment_fault(NOW + requests.AHEAD, NOW) is None
    assert "in the future" in str(requests.moment_fault(NOW + timedelta(seconds=6), NOW))
    assert "in the future" in str(requests.moment_fault(far, NOW))
    assert "before 1970" in str(requests.moment_fault(early, NOW))


def test_attributes_are_bounded() -> None:
    assert requests.attributes_fault({"plan": "pro", "age": 3, "is_new": True, "x": None}) is None
    assert "50" in str(requests.attributes_fault({str(n): n for n in range(51)}))
    assert "4,096" in str(requests.attributes_fault({"a": "b" * 5_000}))
    assert "NUL" in str(requests.attributes_fault({"a": "\0"}))
    assert "NUL" in str(requests.attributes_fault({"\0": 1}))
