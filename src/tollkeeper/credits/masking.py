"""What is kept of payment data: the last four digits, two letters of a name, no secret code.

`mask_payment` is for a document that is payment data, `mask_document` for any that may hold some,
`mask_text` for free text. They take JSON values and return new ones; masking what is masked changes
nothing. Members are visited in the order of their names, so the result does not depend on the order
in which they came. Pure.
"""

import re

from tollkeeper.telemetry.cards import (
    MASK,
    MAX_DIGITS,
    MIN_DIGITS,
    SHOWN_DIGITS,
    holds_card,
    mask_cards,
    may_hold_card,
)

HIDDEN = "****"
"""Stands for letters and digits that are not shown."""

SHOWN_LETTERS = 2
"""Letters of a holder's name that stay readable (SPEC C4)."""

NUMBERED_DIGITS = 12
"""With this many digits a member that is called a card number is one, even if mistyped."""

# Patterns of names, as `_plain` writes them. Anywhere in a document:
_CODE = re.compile(
    r"(?:card|cc|payment)?(?:(?:cv[vcn]|cav)2?(?:code|number|value)?|securitycode)"
    r"|cardverification(?:code|number|value)?"
)
_PIN = re.compile(r"(?:card)?pin(?:number)?")
_CARD_NUMBER = re.compile(
    r"(?:credit|debit|payment|bank)?(?:card|cc)(?:number|no|num|nr|pan)|primaryaccountnumber|pan"
)
_CARD_HOLDER = re.compile(
    r"(?:card|cc)(?:holder|owner)s?(?:full|first|last)?(?:name)?|nameon(?:the)?card"
)
_PAYMENT = re.compile(
    r"payments?|(?:credit|debit|payment|bank)?cards?"
    r"|(?:payment|(?:credit|debit)?card)(?:method|data|details|info|information)"
)
# Only in payment data, where a name may be short:
_SECRET = re.compile(
    rf"{_CODE.pattern}|{_PIN.pattern}|csc|cid|pin(?:block|code)"
    r"|(?:security|verification|validation)(?:code|number|value)"
    r"|track[123]?(?:data)?|mag(?:netic)?stripe(?:data)?"
)
_NUMBER = re.compile(r"(?:credit|debit|payment|bank)?(?:card|cc)|number|[fd]pan")
_HOLDER = re.compile(r"(?:account)?(?:holder|owner)|(?:(?:account)?(?:holder|owner)|first|last|full"
                     r"|given|family|billing|card)?name|surname")  # fmt: skip

_HINTS = (
    "card", "pan", "primaryaccount", "payment", "ccn", "ccho", "ccow",
    "cv", "cav", "csc", "pin", "security",
)  # fmt: skip
"""One of these is in every name that means something outside payment data."""

_SAID_CODE = re.compile(
    r"\b((?:cv[vcn]2?|csc|security code|pin)(?: code| number)?(?: is)?[\s:=#\"'-]{0,4})\d{3,4}\b",
    re.IGNORECASE,
)
_CODE_DIGITS = re.compile(r"[\d\s-]{3,15}")
_SMALLEST, _BEYOND = 10 ** (MIN_DIGITS - 1), 10**MAX_DIGITS


def mask_text(text: str) -> str:
    """Return free text without card numbers, and without codes that are called so (`CVV 123`)."""
    masked = mask_cards(text)
    lowered = masked.lower()
    if "cv" in lowered or "pin" in lowered or "csc" in lowered or "security" in lowered:
        return _SAID_CODE.sub(r"\1***", masked)
    return masked


def mask_payment(payment: dict[str, object]) -> dict[str, object]:
    """Return payment data with its numbers and names masked, and without its secret codes."""
    return _members(payment, is_payment=True)


def mask_document(document: dict[str, object]) -> dict[str, object]:
    """Return a document with what is payment data in it masked, at any depth.

    An object is payment data when it is called so, or when a secret code or a card number stands in
    it under its name.
    """
    return _members(document, is_payment=False)


def may_hold_payment(text: str) -> bool:
    """Whether a document, as JSON, may hold what `mask_document` masks; a look before the work."""
    if may_hold_card(text.replace("\\t", " ")):  # the only separator that JSON escapes
        return True
    plain = _plain(text)
    return any(hint in plain for hint in _HINTS)


def _members(members: dict[str, object], *, is_payment: bool) -> dict[str, object]:
    plain = {name: _plain(name) for name in sorted(members)}
    is_payment = is_payment or any(_is_payment(plain[name], members[name]) for name in plain)
    return {
        mask_text(name): _member(plain[name], members[name], is_payment=is_payment)
        for name in plain
        if not _is_secret(plain[name], members[name], is_payment=is_payment)
    }


def _is_payment(plain: str, value: object) -> bool:
    """Whether a member says that the object around it is payment data."""
    if _CODE.fullmatch(plain):
        return _is_code(value)
    return _is_card(value) and (
        _NUMBER.fullmatch(plain) is not None or _CARD_NUMBER.fullmatch(plain) is not None
    )


def _is_secret(plain: str, value: object, *, is_payment: bool) -> bool:
    """Whether nothing of a member may be kept; outside payment data a `pin` may be on a map."""
    if _SECRET.fullmatch(plain) is None:
        return False
    if is_payment or _is_card(value):
        return True
    return _is_code(value) and (
        _PIN.fullmatch(plain) is not None or _CODE.fullmatch(plain) is not None
    )


def _member(plain: str, value: object, *, is_payment: bool) -> object:
    if _CARD_NUMBER.fullmatch(plain) and (is_payment or _digits_of(value) >= NUMBERED_DIGITS):
        return _number(value)
    if _CARD_HOLDER.fullmatch(plain):
        return _holder(value)
    if is_payment and isinstance(value, str | int | float | list) and _NUMBER.fullmatch(plain):
        return _number(value)
    if is_payment and _HOLDER.fullmatch(plain):
        return _holder(value)
    return _value(value, is_payment=is_payment or _PAYMENT.fullmatch(plain) is not None)


def _value(value: object, *, is_payment: bool) -> object:
    if isinstance(value, str):
        return mask_text(value)
    if isinstance(value, dict):
        return _members(value, is_payment=is_payment)
    if isinstance(value, list):
        return [_value(inner, is_payment=is_payment) for inner in value]
    if isinstance(value, int | float) and _is_card(value):
        return _last_digits(_text_of(value))
    return value


def _number(value: object) -> object:
    """Mask what is called a card number, whatever its form."""
    if isinstance(value, list):
        return [_number(inner) for inner in value]
    if isinstance(value, dict):
        return _members(value, is_payment=True)
    if value is None or isinstance(value, bool):
        return value
    text = _text_of(value)
    return _last_digits(text) if _digits_of(text) else mask_text(text)


def _holder(value: object) -> object:
    """Mask what is called a name, whatever its form."""
    if isinstance(value, list):
        return [_holder(inner) for inner in value]
    if isinstance(value, dict):
        return {mask_text(name): _holder(value[name]) for name in sorted(value)}
    if value is None or isinstance(value, bool):
        return value
    letters = [character for character in str(value) if character.isalpha()]
    return "".join(letters[:SHOWN_LETTERS]) + HIDDEN


def _last_digits(text: str) -> str:
    digits = [str(int(character)) for character in text if character.isdecimal()]
    is_long = len(digits) >= SHOWN_DIGITS
    return MASK + ("".join(digits[-SHOWN_DIGITS:]) if is_long else HIDDEN)


def _is_code(value: object) -> bool:
    return not isinstance(value, bool) and _CODE_DIGITS.fullmatch(_text_of(value)) is not None


def _is_card(value: object) -> bool:
    if isinstance(value, int | float) and not _SMALLEST <= abs(value) < _BEYOND:
        return False
    return holds_card(_text_of(value))


def _digits_of(value: object) -> int:
    return sum(character.isdecimal() for character in _text_of(value))


def _text_of(value: object) -> str:
    """Return a scalar as text, a whole float without its point; nothing of anything else."""
    if isinstance(value, str):
        return value
    return str(value).removesuffix(".0") if isinstance(value, int | float) else ""


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "").replace(" ", "").replace(".", "")
