"""Card numbers for tests: the public test numbers, generated ones of every issuer, and a search.

Only numbers that payment companies publish for testing stand in the repository as they are.
"""

import re

from hypothesis import assume
from hypothesis import strategies as st

PUBLIC_NUMBERS = (
    "4111111111111111", "5555555555554444", "378282246310005", "6011111111111117",
    "30569309025904", "3530111333300000", "2223003122003222",
)  # fmt: skip

ISSUERS: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "visa": (("4",), (13, 16, 19)),
    "mastercard": (("51", "52", "53", "54", "55", "2221", "2229", "2300", "2699", "2720"), (16,)),
    "amex": (("34", "37"), (15,)),
    "discover": (("6011", "644", "649", "65"), (16, 19)),
    "jcb": (("3528", "3530", "3589"), (16, 19)),
    "diners": (("300", "305", "3095", "36", "38", "39"), (14, 16, 19)),
    "unionpay": (("62",), (16, 17, 18, 19)),
    "maestro": (("5018", "5020", "5038", "5893", "6304", "6759", "6763"), (13, 16, 19)),
    "mir": (("2200", "2204"), (16,)),
}
"""Prefixes and lengths, written down again apart from the source."""

SEPARATORS = (" ", "-", "\t", "\xa0", "\u2009", "\u202f", "\u2010", "\u2011", "\u2013")

_THOUSANDS = re.compile(r"\d{1,3}(\s\d{3}){4,}")


def luhn_digit(digits: str) -> str:
    """Return the digit that makes `digits` a whole number by ISO/IEC 7812-1, annex B."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        total += sum(map(int, str(int(digit) * 2))) if place % 2 == 0 else int(digit)
    return str(-total % 10)


def passes_luhn(digits: str) -> bool:
    return luhn_digit(digits[:-1]) == digits[-1]


def grouped(digits: str, separator: str = " ") -> str:
    """Write a number in groups, as its issuer prints it."""
    sizes = (4, 6, 5) if len(digits) == 15 else (4, 6, 4) if len(digits) == 14 else (4,) * 5
    parts, rest = [], digits
    for size in sizes:
        parts.append(rest[:size])
        rest = rest[size:]
    return separator.join(part for part in (*parts, rest) if part)


@st.composite
def card_numbers(draw: st.DrawFn, issuer: str | None = None) -> str:
    """Digits that an issuer could have given out."""
    names = st.sampled_from(sorted(ISSUERS)) if issuer is None else st.just(issuer)
    prefixes, lengths = ISSUERS[draw(names)]
    prefix, length = draw(st.sampled_from(prefixes)), draw(st.sampled_from(lengths))
    missing = length - len(prefix) - 1
    body = prefix + draw(st.text("0123456789", min_size=missing, max_size=missing))
    return body + luhn_digit(body)


@st.composite
def written(draw: st.DrawFn, digits: str) -> str:
    """A number as somebody may write it: in groups, or with separators between any digits.

    Not as amounts are written (`4 111 111 111 111 111`): those are spared.
    """
    separator = draw(st.sampled_from(SEPARATORS))
    if draw(st.booleans()):
        return grouped(digits, separator)
    joints = draw(
        st.lists(
            st.sampled_from(("", separator)), min_size=len(digits) - 1, max_size=len(digits) - 1
        )
    )
    number = digits[0] + "".join(
        joint + digit for joint, digit in zip(joints, digits[1:], strict=True)
    )
    assume(not _THOUSANDS.fullmatch(number))
    return number


def trace_of(digits: str) -> re.Pattern[str]:
    """Return what finds a number in a dump, however its digits are set apart."""
    return re.compile(r"[^0-9A-Za-z]{0,3}".join(digits))
