"""Splits SQL into tokens as PostgreSQL's scanner does (src/backend/parser/scan.l). Pure.

Strings are read with `standard_conforming_strings = on`. Invariant: the tokens' stretches follow
each other without a gap, whatever the text is; what is never closed goes to the end.
"""

import re
from collections.abc import Iterator
from typing import Final

_START: Final = r"(?:[A-Za-z_]|[^\x00-\x7f])"
_REST: Final = r"(?:[A-Za-z0-9_$]|[^\x00-\x7f])"
_TOKEN: Final = re.compile(
    rf"""
    (?P<space>[\x00-\x20\x7f]++)
    | (?P<remark>--[^\n\r]*+)
    | (?P<comment>/\*)
    | (?P<escaped>[eE]'(?:[^'\\]|\\.|'')*+')
    | (?P<plain>(?:[bBxXnN]|[uU]&)?'(?:[^']|'')*+')
    | (?P<dollar>\$(?:{_START}(?:[A-Za-z0-9_]|[^\x00-\x7f])*+)?\$)
    | (?P<name>"(?:[^"]|"")++")
    | (?P<open>(?:[bBxXnNeE]|[uU]&)?'|")
    | (?P<parameter>\$[0-9]{{1,5}}(?![0-9]))
    | (?P<number>(?:[0-9][0-9_]*+\.?[0-9_]*+|\.[0-9][0-9_]*+)(?:[eE][+-]?[0-9]++)?
        (?:{_START}{_REST}*+)?)
    | (?P<word>{_START}{_REST}*+)
    | (?P<mark>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT_EDGE: Final = re.compile(r"/\*|\*/")

BLANK: Final = frozenset({"space", "remark", "comment"})
"""Kinds that say nothing to PostgreSQL."""


def scan(sql: str) -> Iterator[tuple[str, int, int]]:
    """Yield the kind, the start and the end of each token.

    Kinds are `space`, `remark` (to the end of the line), `comment`, `escaped` (E''), `plain` (any
    other string), `dollar` (quoted by dollars), `name` (in double quotes), `open` (a quote that is
    never closed), `parameter`, `number`, `word`, and `mark` (any other single character).
    """
    position = 0
    while position < len(sql):
        match = _TOKEN.match(sql, position)
        assert match is not None
        assert match.lastgroup is not None
        kind, start, position = match.lastgroup, position, match.end()
        if kind == "comment":
            position = _end_of_comment(sql, position)
        elif kind == "dollar":
            end = sql.find(match[0], position)
            position = len(sql) if end < 0 else end + len(match[0])
        elif kind == "open":
            position = len(sql)
        yield kind, start, position


def _end_of_comment(sql: str, position: int) -> int:
    depth = 1
    for edge in _COMMENT_EDGE.finditer(sql, position):
        depth += 1 if edge[0] == "/*" else -1
        if not depth:
            return edge.end()
    return len(sql)
