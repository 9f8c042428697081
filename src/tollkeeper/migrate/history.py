"""The log of migrations of one database: what was done to its schema, in order, in one chain. Pure.

Rows are only ever added. Each carries the SHA-256 of the one before it, so a row that was changed,
removed or put in between is found by whoever reads the log; its owner could forge the whole of it,
which a backup's copy then shows.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

GENESIS: Final = bytes(32)
"""What comes before the first row."""


class Happening(StrEnum):
    """What a row of the log says."""

    ADOPTED = "adopted"
    """A program of before the log had applied it."""
    BEGUN = "begun"
    """A file is being applied or taken back; written beforehand, in a commit of its own."""
    STATEMENT = "statement"
    """One of its statements is about to run."""
    APPLIED = "applied"
    """Commits with the file."""
    TAKEN_BACK = "taken_back"
    """Commits with the file's `down` section."""
    FAILED = "failed"
    """A file was refused; nothing of it remains unless it is outside of a unit of work."""
    BACKED_UP = "backed_up"
    """A backup was taken before what follows."""
    RESTORED = "restored"
    """The database was replaced by a restored backup."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What is written into a row; `details` is an object that JSON can say."""

    at: datetime
    run_id: UUID
    happening: Happening
    version: int | None = None
    name: str | None = None
    checksum: str | None = None
    digest: str | None = None
    source: str | None = None
    duration_ms: int | None = None
    details: str = "{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRow:
    """A row as it stands in the database."""

    number: int
    entry: Entry
    previous_hash: bytes
    hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A file that was begun and neither finished nor refused: whoever did it was killed."""

    version: int
    at: datetime
    is_down: bool
    statement: int
    of: int


def text_of(details: Mapping[str, object]) -> str:
    """Return details as they are kept: JSON, to the byte."""
    return json.dumps(details, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def linked(entry: Entry, number: int, previous_hash: bytes) -> LogRow:
    """Return the row that follows `previous_hash`."""
    return LogRow(
        number=number,
        entry=entry,
        previous_hash=previous_hash,
        hash=_hash_of(entry, number, previous_hash),
    )


def faults(rows: Iterable[LogRow]) -> tuple[str, ...]:
    """Return what is wrong with a log, in words; `rows` in order."""
    found = []
    number, previous = 1, GENESIS
    for row in rows:
        if row.number != number:
            found.append(f"row {number} is missing")
        elif row.previous_hash != previous:
            found.append(f"row {row.number} does not follow the one before it")
        if _hash_of(row.entry, row.number, row.previous_hash) != row.hash:
            found.append(f"row {row.number} was changed")
        number, previous = row.number + 1, row.hash
    return tuple(found)


def last_cut(rows: Iterable[LogRow]) -> Cut | None:
    """Return what was cut, if the log ends in the middle of a file."""
    cut = None
    for row in rows:
        entry = row.entry
        details = json.loads(entry.details)
        match entry.happening:
            case Happening.BEGUN:
                assert entry.version is not None
                cut = Cut(
                    version=entry.version,
                    at=entry.at,
                    is_down=bool(details.get("is_down")),
                    statement=0,
                    of=int(details.get("statements", 0)),
                )
            case Happening.STATEMENT if cut is not None:
                cut = Cut(
                    version=cut.version,
                    at=entry.at,
                    is_down=cut.is_down,
                    statement=int(details.get("statement", 0)),
                    of=cut.of,
                )
            case Happening.APPLIED | Happening.TAKEN_BACK | Happening.FAILED | Happening.RESTORED:
                cut = None
            case _:
                pass
    return cut


def _hash_of(entry: Entry, number: int, previous_hash: bytes) -> bytes:
    source = None if entry.source is None else hashlib.sha256(entry.source.encode()).hexdigest()
    fields = [
        number, f"{entry.at:%Y-%m-%dT%H:%M:%S.%f}", str(entry.run_id), entry.happening.value,
        entry.version, entry.name, entry.checksum, entry.digest, source, entry.duration_ms,
        entry.details,
    ]  # fmt: skip
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(previous_hash + text.encode()).digest()
