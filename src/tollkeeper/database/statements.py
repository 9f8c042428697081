"""SQL as it may be shown: what was asked, and no value of it; and parameters by their types. Pure.

Not a parser: a text is split into tokens (`scanner.py`), names stay and literals become `?`.
Invariants, whatever the text is:
- nothing that PostgreSQL reads as a constant is let through, and where two settings of the server
  would read it differently, or a quote is never closed, all that follows is one `?`;
- a shown statement is shown as itself.
NULL, TRUE and FALSE stay: they are words of the language as often as values.
"""

import hashlib
import re
from collections.abc import Iterable
from typing import Final

from tollkeeper.database.scanner import BLANK, scan

MAX_LENGTH: Final = 2_000
"""Characters of a shown statement; one that was cut ends in `CUT`."""

MAX_READ: Final = 10_000
"""Characters of a statement that are looked at: 4 to 14 ms."""

MAX_NAME: Final = 63
"""PostgreSQL's names are no longer, so what is longer is none."""

MAX_DEPTH: Final = 32
"""Brackets inside brackets up to which lists are folded."""

MAX_TYPES: Final = 32
"""Parameters whose types are told."""

SAMPLE: Final = 8
"""Items of a list that are looked at for its type."""

PLACEHOLDER: Final = "?"
CUT: Final = "..."

_FINGERPRINT_BYTES = 6

_DOUBTFUL = re.compile(r"(?<!\\)(?:\\\\)*+\\'")
"""A backslash before a quote, outside E'': `standard_conforming_strings` says what it means."""

_NAME = re.compile(r"[^\W\d][\w$]*")
_SIGNED_AFTER = frozenset({"", "(", "[", ",", "=", "<", ">", "*", "/", "+", "-", "|"})
_SETTING = re.compile(
    r"(SET (?:(?:LOCAL|SESSION) )?(?:TIME ZONE|[\w.]+ ?(?:TO|=)))\s?\S.*", re.IGNORECASE
)
"""A setting's value may be a bare word."""

_VALUES_IN_SHAPES = frozenset({"NULL", "TRUE", "FALSE", "DEFAULT"})


def normalised(sql: str) -> str:
    """Return a statement without comments and values, in one line of at most `MAX_LENGTH`.

    Of items of a list after IN or ARRAY that differ in their values only, and of such rows after
    VALUES, the first stays: a statement is the same however much it was given.
    """
    text = _Text()
    is_cut = len(sql) > MAX_READ
    for kind, token, is_spaced in _tokens(sql[:MAX_READ]):
        if kind == "number":
            text.drop_sign(is_spaced=is_spaced)
        text.add(token, is_spaced=is_spaced)
    shown = text.shown(is_cut=is_cut)
    setting = _SETTING.fullmatch(shown)
    return shown if setting is None else f"{setting[1]} ?"


def fingerprint_of(shown: str) -> str:
    """Return a short name of a shown statement: 12 hexadecimal digits."""
    return hashlib.blake2b(shown.encode(), digest_size=_FINGERPRINT_BYTES).hexdigest()


def parameter_types(arguments: object) -> tuple[str, ...]:
    """Return the types of a statement's parameters: never a value, but how many or long they are.

    What is not a sequence (rows that are made as they are sent) is told as one.
    """
    if not isinstance(arguments, list | tuple):
        return (_type_of(arguments),)
    types = tuple(_type_of(argument) for argument in arguments[:MAX_TYPES])
    rest = len(arguments) - MAX_TYPES
    return (*types, f"{rest} more") if rest > 0 else types


def _type_of(value: object) -> str:
    if value is None:
        return "null"
    name = type(value).__name__
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{name}[{len(value)}]"
    if isinstance(value, list | tuple):
        items = dict.fromkeys(type(item).__name__ for item in value[:SAMPLE] if item is not None)
        inner = f"[{'|'.join(items)}]" if items else ""
        return f"{name}{inner}[{len(value)}]"
    return name


def _tokens(sql: str) -> Iterable[tuple[str, str, bool]]:
    """Yield kinds, what is shown, and whether white space or a comment was before it."""
    is_spaced = False
    for kind, start, end in scan(sql):
        if kind in BLANK:
            is_spaced = True
            continue
        text = sql[start:end]
        yield kind, _shown(kind, text), is_spaced
        if kind == "plain" and _DOUBTFUL.search(text) is not None:
            return  # what follows may be part of it
        is_spaced = False


def _shown(kind: str, text: str) -> str:
    match kind:
        case "parameter" | "mark":
            return text
        case "word":
            return text if len(text) <= MAX_NAME and _NAME.fullmatch(text) else PLACEHOLDER
        case "name":  # what does not look like one may be a value in the wrong quotes
            inner = text[1:-1]
            is_name = len(inner) <= MAX_NAME and _NAME.fullmatch(inner) is not None
            return text if is_name else f'"{PLACEHOLDER}"'
        case _:
            return PLACEHOLDER


_Shapes = set[tuple[str, ...]]


class _Bracket:
    """An open bracket, or the whole text: where it began, and what is directly in it."""

    __slots__ = ("comma", "items", "mark", "outer", "rows", "start")

    def __init__(
        self, mark: str, start: int, *, items: _Shapes | None, outer: _Shapes | None
    ) -> None:
        self.mark = mark
        self.start = start  # the first token inside
        self.comma = start - 1  # the last comma directly inside, or the bracket
        self.items = items  # of a list that is folded: what its items were like so far
        self.outer = outer  # of a row: what the rows before it were like
        self.rows: _Shapes | None = None  # directly inside, behind VALUES


class _Text:
    """The shown text, token by token; what is folded is taken out when its bracket closes."""

    __slots__ = ("_brackets", "_deeper", "_tokens")

    def __init__(self) -> None:
        self._tokens: list[str] = []  # each with the space before it
        self._brackets = [_Bracket("", 0, items=None, outer=None)]
        self._deeper = 0  # open brackets beyond MAX_DEPTH

    def shown(self, *, is_cut: bool) -> str:
        """Return the text, cut between two tokens if it is too long."""
        tokens = self._tokens
        if is_cut or sum(map(len, tokens)) > MAX_LENGTH:
            room, kept = MAX_LENGTH - len(CUT) - 1, 0
            for token in tokens:
                room -= len(token)
                if room < 0:
                    break
                kept += 1
            del tokens[kept:]
            tokens.append(f"{self._space(CUT, is_spaced=True)}{CUT}")
        return "".join(tokens)

    def drop_sign(self, *, is_spaced: bool) -> None:
        """Forget the sign of a number that follows: what is no operator is part of the value."""
        is_sign = not is_spaced and self._last() in {"-", "+"}
        if is_sign and self._last(2) in _SIGNED_AFTER:
            sign = self._tokens.pop()
            if sign.startswith(" "):
                self._tokens.append(f" {PLACEHOLDER}")

    def add(self, piece: str, *, is_spaced: bool) -> None:
        """Append a token."""
        if piece == self._last() == PLACEHOLDER:
            return  # a string in several pieces
        if piece in {"(", "["}:
            self._open(piece, is_spaced=is_spaced)
            return
        if piece in {")", "]"} and self._close():
            return
        inside = self._brackets[-1]
        if piece == ",":
            self._fold_item(inside)
            inside.comma = len(self._tokens)
        elif piece.upper() == "VALUES":
            inside.rows, inside.items = set(), None
        elif piece not in {")", "]"}:
            inside.rows = None
        self._tokens.append(f"{self._space(piece, is_spaced=is_spaced)}{piece}")

    def _last(self, back: int = 1) -> str:
        return self._tokens[-back].lstrip(" ") if len(self._tokens) >= back else ""

    def _space(self, piece: str, *, is_spaced: bool) -> str:
        is_wanted = is_spaced and piece not in {")", "]", ",", ";"}
        return " " if is_wanted and self._last() not in {"", "(", "["} else ""

    def _open(self, mark: str, *, is_spaced: bool) -> None:
        outer, last = self._brackets[-1], self._last().upper()
        self._tokens.append(f"{self._space(mark, is_spaced=is_spaced)}{mark}")
        if len(self._brackets) > MAX_DEPTH:
            self._deeper += 1
            return
        is_list = (mark == "(" and last == "IN") or (
            mark == "[" and (last == "ARRAY" or (outer.mark == "[" and outer.items is not None))
        )
        is_row = mark == "(" and last in {"VALUES", ","}
        self._brackets.append(
            _Bracket(
                mark,
                len(self._tokens),
                items=set() if is_list else None,
                outer=outer.rows if is_row else None,
            )
        )

    def _close(self) -> bool:
        """Close a bracket and fold what is in it; True if it is gone altogether."""
        if self._deeper:
            self._deeper -= 1
            return False
        if len(self._brackets) == 1:
            return False  # it was never opened
        inner = self._brackets.pop()
        self._fold_item(inner)
        if inner.outer is None:
            return False
        outer = self._brackets[-1]
        return self._fold(inner.outer, start=inner.start, end=outer.comma)

    def _fold_item(self, inside: _Bracket) -> None:
        """Take the last item of a list out if one before differs in its values only."""
        if inside.items is not None:
            self._fold(inside.items, start=inside.comma + 1, end=inside.comma)

    def _fold(self, known: _Shapes, *, start: int, end: int) -> bool:
        """Take out what follows `end` if what is from `start` on has values and is known."""
        shape = tuple(_shape_of(token.lstrip(" ")) for token in self._tokens[start:])
        if PLACEHOLDER in shape and shape in known:
            del self._tokens[end:]
            return True
        known.add(shape)
        return False


def _shape_of(token: str) -> str:
    is_value = token[:1] == "$" or token.upper() in _VALUES_IN_SHAPES
    return PLACEHOLDER if is_value else token
