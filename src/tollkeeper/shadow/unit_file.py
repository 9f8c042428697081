"""Files of outcomes and of units: CSV with a header, JSON lines, or one id a line; line by line.

No I/O but on the file it is given; nothing is sent here. A file is never held in memory.

Invariants: every line is an outcome, blank, or a `BadLine` that says what is wrong. An outcome
without an id gets one from the file's content and its line: the same file again counts nothing
twice.
"""

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from io import BufferedReader, BytesIO
from typing import Final, NamedTuple

from tollkeeper.kernel.errors import TollkeeperError
from tollkeeper.shadow.model import VALUE_LIMIT, is_id

BinaryFile = BufferedReader | BytesIO
"""A file that can be read twice."""

COLUMNS: Final = ("experiment_id", "unit_id", "outcome_id", "metric", "value", "occurred_at")
"""Members of a line, in any order; all but `unit_id` may be left out."""

LINE_LIMIT_BYTES: Final = 64 * 1024
"""Longest line read; a longer one is malformed."""

BAD_LINES_LISTED: Final = 10
"""Malformed lines kept with their reason; beyond that they are counted."""

DECIMALS: Final = 6

_NUMBER = re.compile(r"-?[0-9]{1,13}(\.[0-9]+)?([eE][+-]?[0-9]{1,2})?")


class OutcomeRow(NamedTuple):
    """An outcome that a line says; `line` counts from 1."""

    line: int
    fields: Mapping[str, object]


class BadLine(NamedTuple):
    """A line that is no outcome, and why."""

    line: int
    problem: str


@dataclass(eq=False, kw_only=True)
class OutcomesMalformed(TollkeeperError):
    """The file has lines that are no outcomes, or is no such file; nothing was sent."""

    path: str
    bad: tuple[BadLine, ...]
    count: int

    def message(self) -> str:
        """Name the first malformed lines, and how many there are."""
        named = "; ".join(f"line {line:,}: {problem}" for line, problem in self.bad[:3])
        more = f"; {self.count - 3:,} more lines are malformed" if self.count > 3 else ""
        return f"{self.path}, {named}{more}; nothing was sent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What a whole file holds, read before anything is sent."""

    digest: str
    rows: int
    bad: tuple[BadLine, ...]
    bad_count: int


def survey_outcomes(file: BinaryFile, experiment_id: str) -> Survey:
    """Read a file from the start to the end: its digest, its rows and its malformed lines."""
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    rows = bad_count = 0
    bad: list[BadLine] = []
    for entry in read_outcomes(file, experiment_id, digest):
        if isinstance(entry, OutcomeRow):
            rows += 1
            continue
        bad_count += 1
        if len(bad) < BAD_LINES_LISTED:
            bad.append(entry)
    return Survey(digest=digest, rows=rows, bad=tuple(bad), bad_count=bad_count)


def read_outcomes(
    file: BinaryFile, experiment_id: str, digest: str
) -> Iterator[OutcomeRow | BadLine]:
    """Yield the outcomes and malformed lines of a file; after a wrong header there is no more."""
    file.seek(0)
    header: list[str] | None = None
    is_json: bool | None = None
    for line, text in _lines(file):
        try:
            content = _checked(text)
            if not content.strip():
                continue
            if is_json is None:
                is_json = content.lstrip("\ufeff \t").startswith("{")
            if is_json:
                members = _object(content.removeprefix("\ufeff"))
            elif header is None:
                header = _header(content)
                continue
            else:
                members = _cells(header, content)
            yield OutcomeRow(line, _outcome(members, experiment_id, f"{digest[:32]}-{line}"))
        except _Malformed as error:
            yield BadLine(line, str(error))
            if header is None and not is_json:
                return
    if is_json is None:
        yield BadLine(1, "the file is empty")


def read_units(file: BinaryFile) -> Iterator[str | BadLine]:
    """Yield the ids of a file, one a line; blank lines are none."""
    for line, text in _lines(file):
        try:
            content = _checked(text).removeprefix("\ufeff").strip()
            if not content:
                continue
            yield content if is_id(content) else BadLine(line, "an id is 1 to 128 bytes")
        except _Malformed as error:
            yield BadLine(line, str(error))


class _Malformed(Exception):  # never leaves this module
    """What is wrong with a line."""


def _lines(file: BinaryFile) -> Iterator[tuple[int, bytes | None]]:
    # None stands for a line that is too long to be read.
    line = 0
    while raw := file.readline(LINE_LIMIT_BYTES):
        line += 1
        is_whole = len(raw) < LINE_LIMIT_BYTES or raw.endswith(b"\n")
        yield line, raw if is_whole else None
        while not is_whole:
            rest = file.readline(LINE_LIMIT_BYTES)
            is_whole = len(rest) < LINE_LIMIT_BYTES or rest.endswith(b"\n")


def _checked(raw: bytes | None) -> str:
    if raw is None:
        raise _Malformed(f"longer than {LINE_LIMIT_BYTES:,} bytes")
    try:
        text = raw.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise _Malformed(f"byte {error.start + 1} is not UTF-8") from error
    if "\0" in text:
        raise _Malformed("it contains a NUL byte")
    return text


def _header(text: str) -> list[str]:
    names = [name.strip() for name in _split(text.removeprefix("\ufeff"))]
    unknown = [name for name in names if name not in COLUMNS]
    if "unit_id" not in names or unknown or len(set(names)) < len(names):
        others = ", ".join(COLUMNS)
        raise _Malformed(f"the header must name unit_id, and may name others of {others}")
    return names


def _cells(header: list[str], text: str) -> dict[str, object]:
    cells = _split(text)
    if len(cells) != len(header):
        raise _Malformed(f"{len(cells)} columns where the header has {len(header)}")
    return {name: cell.strip() for name, cell in zip(header, cells, strict=True) if cell.strip()}


def _split(text: str) -> list[str]:
    try:
        return next(csv.reader((text,), strict=True))
    except csv.Error as error:
        raise _Malformed(f"the quotes do not match: {error}") from error


def _object(text: str) -> dict[str, object]:
    try:
        found = json.loads(text, parse_float=str, parse_int=str, parse_constant=str)
    except (ValueError, RecursionError) as error:
        raise _Malformed(f"it is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise _Malformed("it is not a JSON object")
    unknown = [name for name in found if name not in COLUMNS]
    if unknown:
        raise _Malformed(f"{_shown(unknown[0])} is not one of {', '.join(COLUMNS)}")
    if not isinstance(found.get("value", ""), str):
        raise _Malformed("the value is not a number")
    return {name: value for name, value in found.items() if value is not None}


def _outcome(members: Mapping[str, object], experiment_id: str, made: str) -> dict[str, object]:
    fields: dict[str, object] = {"experiment_id": experiment_id, "outcome_id": made}
    for name, value in members.items():
        if not isinstance(value, str):
            raise _Malformed(f"{name} is not a text")
        fields[name] = value
    if "unit_id" not in fields:
        raise _Malformed("unit_id is missing")
    for name in ("unit_id", "outcome_id", "experiment_id"):
        if not is_id(str(fields[name])):
            raise _Malformed(f"{name} is not 1 to 128 bytes")
    if "value" in members:
        fields["value"] = decimal_of(str(members["value"]))
        if fields["value"] is None:
            raise _Malformed(
                f"the value {_shown(members['value'])} is not a number with at most {DECIMALS} "
                "decimals"
            )
    if "occurred_at" in members:
        fields["occurred_at"] = moment_of(str(members["occurred_at"]))
        if fields["occurred_at"] is None:
            raise _Malformed(
                f"occurred_at {_shown(members['occurred_at'])} is not RFC 3339 with a zone"
            )
    return fields


def decimal_of(text: str) -> Decimal | None:
    """Return a value that somebody wrote, exactly; None: the service would not take it."""
    if _NUMBER.fullmatch(text) is None:
        return None
    try:
        value = Decimal(text)
        exact = value.quantize(Decimal(1).scaleb(-DECIMALS))
    except InvalidOperation:
        return None
    return value if exact == value and abs(value) <= VALUE_LIMIT else None


def moment_of(text: str) -> datetime | None:
    """Return a moment that somebody wrote; None: it is none, or has no zone."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None


def _shown(value: object) -> str:
    text = str(value)
    return repr(text if len(text) <= 40 else f"{text[:40]}...")
