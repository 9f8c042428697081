"""Reads a migration's file: its sections, its statements, and what it is known by. Pure.

A file is `-- up`, optionally `-- verify` and `-- down`, each on a line of its own and followed by
SQL. `-- up transaction:false` says that its one statement cannot be in a unit of work, and
`-- down derived:hours,days` that the rows of these tables can be made again.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Final

from tollkeeper.database.scanner import BLANK, scan
from tollkeeper.migrate.errors import BadMigrationFile, BadMigrationName, NotOneUnitOfWork
from tollkeeper.migrate.model import Migration, Statement, file_of

_NAME: Final = re.compile(r"([0-9]{4})_([a-z0-9]+(?:_[a-z0-9]+)*)\.sql")
_SECTION: Final = re.compile(r"^-- (up|verify|down)((?: \S.*)?)$", re.MULTILINE)
_ALONE: Final = " transaction:false"
_DERIVED: Final = " derived:"
_ENDING_A_UNIT: Final = frozenset(
    {"BEGIN", "START", "COMMIT", "END", "ROLLBACK", "ABORT", "SAVEPOINT", "RELEASE", "PREPARE"}
)


def migration_from(database: str, file_name: str, source: str) -> Migration:
    """Make a migration of a file.

    Raises:
        BadMigrationName: the name is not `NNNN_what.sql`, or its number is 0000.
        BadMigrationFile: its sections are not as they must be.
        NotOneUnitOfWork: it begins or ends one itself.
    """
    match = _NAME.fullmatch(file_name)
    if match is None or int(match[1]) == 0:
        raise BadMigrationName(file=f"{database}/{file_name}")
    file = file_of(database, int(match[1]), match[2])
    text = source.replace("\r\n", "\n").replace("\r", "\n")
    sections, options = _sections(file, text)
    is_transactional = options["up"] != _ALONE
    parts = {name: tuple(statements(body, line)) for name, (body, line) in sections.items()}
    _check(file, parts, is_transactional=is_transactional)
    up = sections["up"][0].strip() + "\n"
    return Migration(
        database=database,
        version=int(match[1]),
        name=match[2],
        source=source,
        up=parts["up"],
        checks=parts.get("verify", ()),
        down=parts.get("down"),
        derived=frozenset(filter(None, options.get("down", "").removeprefix(_DERIVED).split(","))),
        is_transactional=is_transactional,
        checksum=hashlib.sha256(up.encode()).hexdigest(),
        digest=digest_of(up),
    )


def statements(sql: str, line: int = 1) -> Iterator[Statement]:
    """Yield the statements of a text that begins on `line` of its file, without semicolons.

    A semicolon inside brackets (CREATE RULE) or a body between BEGIN ATOMIC and END ends none.
    """
    start: int | None = None
    last = brackets = bodies = 0
    before = ""
    for kind, begin, end in scan(sql):
        if kind in BLANK:
            continue
        piece = sql[begin:end]
        if piece == ";" and brackets <= 0 and not bodies:
            if start is not None:
                yield _statement(sql, start, last, line)
            start, brackets, before = None, 0, ""
            continue
        if start is None:
            start = begin
        last = end
        if kind == "mark":
            brackets += (piece in "([") - (piece in ")]")
        elif kind == "word":
            word = piece.upper()
            is_body = word == "ATOMIC" and before == "BEGIN"
            bodies += is_body or (bodies and word in {"BEGIN", "CASE"})
            bodies -= bool(bodies) and word == "END"
            before = word
    if start is not None:
        yield _statement(sql, start, last, line)


def digest_of(sql: str) -> str:
    """Return the SHA-256 of what PostgreSQL sees: tokens without white space and comments."""
    seen = hashlib.sha256()
    for kind, begin, end in scan(sql):
        if kind not in BLANK:
            token = sql[begin:end].encode()
            seen.update(len(token).to_bytes(4, "big") + token)
    return seen.hexdigest()


def first_words(statement: Statement, count: int = 1) -> tuple[str, ...]:
    """Return the first words of a statement in upper case."""
    words: list[str] = []
    for kind, begin, end in scan(statement.text):
        if kind in BLANK:
            continue
        if kind != "word" or len(words) == count:
            break
        words.append(statement.text[begin:end].upper())
    return tuple(words)


def index_of(statement: Statement) -> str | None:
    """Return the name of the index that CREATE INDEX CONCURRENTLY makes; None for all else."""
    tokens = [
        statement.text[begin:end] for kind, begin, end in scan(statement.text) if kind not in BLANK
    ]
    words = [token.upper() for token in tokens]
    if words[:1] != ["CREATE"] or "CONCURRENTLY" not in words[:4] or "INDEX" not in words[:3]:
        return None
    place = words.index("CONCURRENTLY") + 1
    if words[place : place + 3] == ["IF", "NOT", "EXISTS"]:
        place += 3
    return tokens[place]


def _statement(sql: str, start: int, end: int, line: int) -> Statement:
    return Statement(text=sql[start:end], line=line + sql.count("\n", 0, start))


def _sections(file: str, text: str) -> tuple[Mapping[str, tuple[str, int]], Mapping[str, str]]:
    """Return text and first line of each section, and the options of each."""
    found = list(_SECTION.finditer(text))
    if not found or found[0][1] != "up" or _is_code(text[: found[0].start()]):
        raise BadMigrationFile(file=file, problem="its first line of SQL must come after `-- up`")
    if len({match[1] for match in found}) < len(found):
        raise BadMigrationFile(file=file, problem="a section is there twice")
    for match in found:
        is_known = (match[1] == "up" and match[2] == _ALONE) or (
            match[1] == "down" and match[2].startswith(_DERIVED)
        )
        if match[2] and not is_known:
            raise BadMigrationFile(
                file=file,
                problem=f"`{match[0]}` is not understood; known are `-- up{_ALONE}` and "
                f"`-- down{_DERIVED}TABLE,TABLE`",
            )
    ends = [*(match.start() for match in found[1:]), len(text)]
    sections = {
        match[1]: (text[match.end() : end], text.count("\n", 0, match.end()) + 1)
        for match, end in zip(found, ends, strict=True)
    }
    return sections, {match[1]: match[2] for match in found}


def _is_code(text: str) -> bool:
    return any(kind not in BLANK for kind, _, _ in scan(text))


def _check(
    file: str, parts: Mapping[str, tuple[Statement, ...]], *, is_transactional: bool
) -> None:
    for name, section in parts.items():
        if not section:
            raise BadMigrationFile(file=file, problem=f"its section `-- {name}` is empty")
    if not is_transactional and len(parts["up"]) != 1:
        raise BadMigrationFile(
            file=file, problem="outside of a unit of work it must be exactly one statement"
        )
    if not is_transactional and "verify" not in parts:
        raise BadMigrationFile(
            file=file,
            problem="outside of a unit of work it needs `-- verify`, to tell whether it was done",
        )
    for statement in (each for section in parts.values() for each in section):
        [word] = first_words(statement) or ("",)
        if word in _ENDING_A_UNIT:
            raise NotOneUnitOfWork(file=file)
