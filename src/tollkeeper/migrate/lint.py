"""Rules for migrations that squawk does not have: what stops users of a live ledger. Pure.

- `partition-of-live-parent`: CREATE TABLE ... PARTITION OF takes ACCESS EXCLUSIVE on its parent; a
  table that is made for itself and attached takes SHARE UPDATE EXCLUSIVE, and stops nobody.
- `plain-refresh`: REFRESH MATERIALIZED VIEW without CONCURRENTLY keeps readers out to its end.
- `waiver-without-reason`: a rule of squawk's is waived, and no comment above says why.

What the same file has just made is nobody's yet and may be treated as it likes. Bodies of functions
count as well: they run later, on a live database.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tollkeeper.database.scanner import BLANK, scan
from tollkeeper.migrate.model import Migration, Statement

_NAME: Final = r'((?:"[^"]+"|%[IsL]|\w+)(?:\.(?:"[^"]+"|%[IsL]|\w+))*)'
_CREATED: Final = re.compile(
    rf"CREATE (?:UNLOGGED )?(?:TABLE|MATERIALIZED VIEW)(?: IF NOT EXISTS)? {_NAME}", re.IGNORECASE
)
_PARTITION: Final = re.compile(rf"\bPARTITION OF {_NAME}", re.IGNORECASE)
_REFRESH: Final = re.compile(
    rf"\bREFRESH MATERIALIZED VIEW (?!CONCURRENTLY\b){_NAME}", re.IGNORECASE
)
_WAIVER: Final = re.compile(r"^\s*--\s*squawk-ignore", re.IGNORECASE)
_COMMENT: Final = re.compile(r"^\s*--(?!\s*squawk-ignore)\s*\S", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What is wrong, and on which line of the file."""

    file: str
    line: int
    rule: str
    problem: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.rule}: {self.problem}"


def findings(migration: Migration) -> tuple[Finding, ...]:
    """Return what these rules find in a file's `up` section, in order."""
    found: list[Finding] = []
    made: set[str] = set()
    for statement in migration.up:
        text = _without_comments(statement.text)
        found += _in_statement(migration.file, statement, text, made)
        made.update(match[1].lower() for match in _CREATED.finditer(text))
    return (*found, *_waivers(migration))


def _in_statement(file: str, statement: Statement, text: str, made: set[str]) -> Iterator[Finding]:
    for match in _PARTITION.finditer(text):
        if match[1].lower() not in made:
            yield Finding(
                file=file, line=statement.line, rule="partition-of-live-parent",
                problem=f"PARTITION OF locks {match[1]} against everyone: "
                "make the table with LIKE, and ATTACH it",
            )  # fmt: skip
    for match in _REFRESH.finditer(text):
        if match[1].lower() not in made:
            yield Finding(
                file=file, line=statement.line, rule="plain-refresh",
                problem=f"REFRESH keeps readers of {match[1]} out: refresh it CONCURRENTLY",
            )  # fmt: skip


def _waivers(migration: Migration) -> Iterator[Finding]:
    lines = migration.source.splitlines()
    for number, line in enumerate(lines):
        if _WAIVER.match(line) and not (number and _COMMENT.match(lines[number - 1])):
            yield Finding(
                file=migration.file, line=number + 1, rule="waiver-without-reason",
                problem="say in a comment above why the rule does not hold here",
            )  # fmt: skip


def _without_comments(sql: str) -> str:
    """Return a text in one line, also inside of its quoted bodies."""
    pieces = []
    for kind, begin, end in scan(sql):
        piece = sql[begin:end]
        if kind == "dollar":
            tag = piece[: piece.index("$", 1) + 1]
            piece = f"{tag} {_without_comments(piece[len(tag) : -len(tag)])} {tag}"
        pieces.append(" " if kind in BLANK else piece)
    return re.sub(r"\s+", " ", "".join(pieces))
