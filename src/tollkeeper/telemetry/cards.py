"""Payment card numbers in free text: found by shape, issuer and check digit, and masked.

A card number has 13 to 19 digits, together or with single spaces or dashes between them. Any such
digits that an issuer could have given out (prefix, length, Luhn) are masked, whatever stands
around them; what numbers of other kinds look like is spared: UUIDs, hexadecimal digests, decimal
fractions, amounts in thousands, longer runs of digits. Pure, and linear in the length of the text.

Invariant: masking what is masked changes nothing.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate

MASK = "****-****-****-"
"""Stands before the last four digits of a masked number."""

MIN_DIGITS = 13
MAX_DIGITS = 19

SHOWN_DIGITS = 4
"""Last digits that stay readable; PCI DSS 3.4.1 allows them."""

_SPACES = r" \t\xa0\u2000-\u200a\u202f\u205f\u3000"
_SEPARATORS = rf"{_SPACES}+\u2010-\u2015\u2212\uff0d\-"
_SEPARATOR = rf"(?:[{_SEPARATORS}]|%20)"  # a URL writes a space as `+` or `%20`
_SUSPECT = re.compile(rf"\d[\d{_SEPARATORS}%]{{{MIN_DIGITS - 1}}}")

_UUID = r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}"
# A card number between letters has one run of digits, a digest has many.
_DIGEST = r"(?:0x)?(?=[a-fA-F]*[0-9]+[a-fA-F]+[0-9])(?:[0-9a-fA-F]{8}){3,16}"
_IDENTIFIER = rf"(?<![0-9A-Za-z])(?:{_UUID}|{_DIGEST})(?![0-9A-Za-z])"
_DECIMAL = r"(?:\d{1,12}\.\d{13,20}|\d{13,20}\.\d{1,4})(?!\d)"
_SPARED = rf"{_IDENTIFIER}|{_DECIMAL}"
_TOKEN = re.compile(rf"{_SPARED}|(?P<run>\d+(?:{_SEPARATOR}(?!{_SPARED})\d+)*)")
_ESCAPED = re.compile(r"(?<=%)\d\d|(?<=%[a-fA-F])\d")  # digits of an escape in a URL
_THOUSANDS = re.compile(rf"\d{{1,3}}(?:[{_SPACES}]\d{{3}}){{4,}}")
_GROUP = re.compile(rf"(?P<separator>{_SEPARATOR}?)(?P<digits>\d+)")

_ISSUED = re.compile(
    r"(?=4)(?:\d{13}|\d{16}|\d{19})"  # Visa
    r"|(?=5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720)\d{16}"  # Mastercard
    r"|(?=3[47])\d{15}"  # American Express
    r"|(?=6(?:0|4[4-9]|5))\d{16,19}"  # Discover, RuPay
    r"|(?=35(?:2[89]|[3-8]))\d{16,19}"  # JCB
    r"|(?=3(?:0[0-59]|[689]))\d{14,19}"  # Diners Club
    r"|(?=62)\d{16,19}"  # UnionPay
    r"|(?=50|5[6-8]|63|67)\d{13,19}"  # Maestro and its local kin
    r"|(?=220[0-5])\d{16,19}"  # Mir
    r"|(?=9792)\d{16}"  # Troy
)
_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
"""What a doubled digit adds to a Luhn sum (ISO/IEC 7812-1, annex B)."""


def mask_cards(text: str) -> str:
    """Return `text` with every card number as `****-****-****-1234`."""
    if len(text) < MIN_DIGITS or _SUSPECT.search(text) is None:
        return text
    return _TOKEN.sub(_masked, text)


def holds_card(text: str) -> bool:
    """Whether a card number stands in `text`."""
    return mask_cards(text) != text


def may_hold_card(text: str) -> bool:
    """Whether `text` has enough digits in a row for a card number; a look before the work."""
    return _SUSPECT.search(text) is not None


def _masked(token: re.Match[str]) -> str:
    run = token["run"]
    if run is None or len(run) < MIN_DIGITS or _THOUSANDS.fullmatch(run):
        return token[0]
    places: list[int] = []  # where in the run each digit stands
    bounds = [0]  # how many digits there are before each group, and in all
    for group in _GROUP.finditer(run):
        places.extend(range(*group.span("digits")))
        bounds.append(len(places))
    # Whether its first digits belong to a URL's escape, as in %20, nobody can say: try both.
    escape = _ESCAPED.match(token.string, token.start())
    escaped = 0 if escape is None else escape.end() - token.start()
    if len(bounds) == 2 and len(places) - escaped > MAX_DIGITS:
        return run
    if 0 < escaped < bounds[1]:
        bounds.insert(1, escaped)
    digits = "".join([str(int(run[place])) for place in places])
    pieces, done = [], 0
    for first, last in _spans(digits, bounds):
        shown = digits[last - SHOWN_DIGITS : last]
        pieces += [run[done : places[first]], MASK, shown]
        done = places[last - 1] + 1
    return "".join(pieces) + run[done:] if pieces else run


def _spans(digits: str, bounds: Sequence[int]) -> list[tuple[int, int]]:
    """Return where card numbers stand; such that overlap are one.

    So are such that begin with the digits another one shows: nothing is found in what is masked.
    """
    numbers = _Numbers(digits, bounds)
    found: list[tuple[int, int]] = []
    group = 0
    while group < len(bounds) - 1:
        first, last = bounds[group], numbers.farthest(bounds[group], group)
        group += 1
        if not last:
            continue
        while True:
            if group < last:
                reached = numbers.farthest(bounds[group], group)
                group += 1
            else:
                reached = numbers.farthest(bounds[last] - SHOWN_DIGITS, last)
                if not reached:
                    break
            last = max(last, reached)
        found.append((first, bounds[last]))
    return found


class _Numbers:
    """The card numbers that end where a group of digits ends; Luhn sums are differences."""

    __slots__ = ("_bounds", "_digits", "_sums")

    def __init__(self, digits: str, bounds: Sequence[int]) -> None:
        values = [int(digit) for digit in digits]
        values[::2] = [_DOUBLED[value] for value in values[::2]]
        doubled_even = list(accumulate(values, initial=0))
        values = [int(digit) for digit in digits]
        values[1::2] = [_DOUBLED[value] for value in values[1::2]]
        self._digits = digits
        self._bounds = bounds
        # The check digit, in the last place, is not doubled: an even end has it in an odd place.
        self._sums = doubled_even, list(accumulate(values, initial=0))

    def farthest(self, start: int, group: int) -> int:
        """Return the number of the last bound behind `group` where a card from `start` ends; or 0.

        At most seven bounds are looked at.
        """
        bounds, sums = self._bounds, self._sums
        first = bisect_left(bounds, start + MIN_DIGITS, group + 1)
        behind = bisect_right(bounds, start + MAX_DIGITS, first)
        for number in range(behind - 1, first - 1, -1):
            end = bounds[number]
            of_parity = sums[end % 2]
            is_checked = (of_parity[end] - of_parity[start]) % 10 == 0
            if is_checked and _ISSUED.fullmatch(self._digits, start, end):
                return number
        return 0
