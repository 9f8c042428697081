"""Characters that a terminal would obey or hide, shown as what they are.

Text from a ledger is other people's: a description may hold what clears a screen, and an edited row
what makes one account look like another. Pure.
"""

import json
import unicodedata
from typing import Final

HIDDEN_CATEGORIES: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode's controls, formats (bidirectional ones among them), surrogates, and line separators."""


def visible(text: str) -> str:
    """Return text with such characters as JSON writes them: a backslash, `u` and four digits.

    In a JSON document, where they stand inside strings only, the escaped one says the same.
    """
    if text.isprintable():  # in C: nearly all text is
        return text
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if unicodedata.category(character) not in HIDDEN_CATEGORIES:
        return character
    return json.dumps(character)[1:-1]
