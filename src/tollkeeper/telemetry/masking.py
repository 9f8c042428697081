"""The last look at a log event: no card number and no secret leaves the process.

Card numbers are masked wherever they stand: in the message, in names and values of fields at any
depth, in tracebacks. A field that is called like a secret loses its value, a DSN its password.
Nothing should need this; it is here for what nobody thought of. Pure, but for `repr` of what is
logged.
"""

import re
from collections.abc import Mapping
from functools import lru_cache

from structlog.types import EventDict

from tollkeeper.telemetry.cards import mask_cards

REMOVED = "***"
"""Stands for a secret's value."""

MAX_DEPTH = 8
"""Levels of a field that are kept as they are nested; what is deeper becomes text."""

_SECRET_NAME = re.compile(
    r".*(?:authorization|password|passwd|passphrase|secret|token|apikey|privatekey|cookie)"
    r"|.*(?:cv[vcn]2?|csc|securitycode)|(?:card)?pin(?:block|number)?|track[123]?data"
)
"""Names in lower case, without what is neither letter nor digit."""

_NOT_IN_NAMES = re.compile(r"[\W_]+")
_DSN_PASSWORD = re.compile(r"(://[^\s:/@]*:)[^\s/]+@")
_SAID_PASSWORD = re.compile(r"(\bpassword\s?=\s?)(?:'[^']*'|[^\s&'\"]+)", re.IGNORECASE)
_API_KEY = re.compile(r"\b(tk_[a-z]+_)[0-9a-f]{16,}")


def mask_event(_: object, __: str, event: EventDict) -> EventDict:
    """Return an event as it may be written; a structlog processor, the last before rendering."""
    masked: EventDict = {}
    for name, value in event.items():
        shown, is_secret = _known_name(str(name))
        masked[shown] = REMOVED if is_secret else _masked(value, 0)
    return masked


@lru_cache(maxsize=256)
def _known_name(name: str) -> tuple[str, bool]:
    """Return a field's name as it may be written, and whether its value may not.

    Fields are called alike in every line: judging names anew took a third of a line's time.
    """
    return masked_text(name), _is_secret(name)


def _is_secret(name: str) -> bool:
    return _SECRET_NAME.fullmatch(_NOT_IN_NAMES.sub("", name).lower()) is not None


def _masked(value: object, depth: int) -> object:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return masked_text(value)
    if isinstance(value, int | float):
        text = str(value)
        masked = mask_cards(text.removesuffix(".0"))
        return value if masked == text.removesuffix(".0") else masked
    if depth < MAX_DEPTH:
        if isinstance(value, Mapping):
            return {
                masked_text(str(name)): REMOVED
                if _is_secret(str(name))
                else _masked(inner, depth + 1)
                for name, inner in value.items()
            }
        if isinstance(value, list | tuple | set | frozenset):
            return [_masked(inner, depth + 1) for inner in value]
    return masked_text(repr(value))


def masked_text(text: str) -> str:
    """Return a text as it may be written."""
    masked = mask_cards(text)
    if "://" in masked:
        masked = _DSN_PASSWORD.sub(rf"\1{REMOVED}@", masked)
    if "tk_" in masked:
        masked = _API_KEY.sub(rf"\1{REMOVED}", masked)
    return _SAID_PASSWORD.sub(rf"\1{REMOVED}", masked)
