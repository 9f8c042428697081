"""The nouns of backups: what one is, what is known of it, and how far it was verified.

Pure. A backup is what its metadata say: files without metadata are none. Sizes are bytes, durations
seconds, hashes SHA-256 in hexadecimal. Invariant: nothing here is a secret.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import msgspec

from tollkeeper.migrate.backup_errors import MetadataChanged

FORMAT = 1
"""Of the metadata; raised when a field changes its meaning."""

_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}-[0-9]{8}T[0-9]{6}Z-[0-9a-f]{6}")
_UNFIT = re.compile(r"[^A-Za-z0-9_.-]")

_OF_THE_RUNNER = frozenset({"public.tollkeeper_migration_log", "public.tollkeeper_migrations"})
"""Where runs are written down: going back itself changes them, and nobody loses that."""

Fact = int | str
"""Something counted, or a digest."""


class Level(StrEnum):
    """How far a backup was verified; each level includes those before it."""

    CHECKSUM = "checksum"
    """Its bytes are those that were written."""
    READ = "read"
    """And `pg_restore` reads every one of them."""
    DEEP = "deep"
    """And restored, it is what was backed up, and sound."""

    @property
    def rank(self) -> int:
        """Return 1, 2 or 3; what was never verified has 0."""
        return list(Level).index(self) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFacts:
    """A table as the backup's snapshot saw it."""

    rows: int
    size_bytes: int
    digest: str | None = None
    """The sum of hashes over all rows; none for tables that are too big for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseProperties:
    """What belongs to a database and stands in no dump of it."""

    name: str
    owner: str
    encoding: str
    collate: str
    ctype: str
    provider: str
    """As in pg_database: c is libc, i is ICU, b is built in."""
    locale: str | None
    tablespace: str
    connection_limit: int
    comment: str | None = None
    acl: tuple[str, ...] | None = None
    settings: tuple[tuple[str, str], ...] = ()
    """Of the role (empty: of all), and `name=value`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedVersion:
    """A migration that had been applied."""

    version: int
    name: str
    checksum: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What one snapshot says of a database: the dump is of the same."""

    lsn: str
    versions: tuple[AppliedVersion, ...]
    tables: Mapping[str, TableFacts]
    facts: Mapping[str, Fact]
    flaws: tuple[str, ...] = ()
    """What was not as it should be at the time: constraints never validated, invalid indexes."""

    @property
    def rows(self) -> int:
        """Rows of all tables."""
        return sum(table.rows for table in self.tables.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """A file as it was written."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """One backup, as its metadata describe it."""

    format: int = FORMAT
    id: str
    run_id: str
    reason: str
    service: str
    """Which of Tollkeeper's databases: credits, access, ..."""
    tollkeeper: str
    server_version: str
    server_major: int
    dump_version: str
    database_oid: int
    system_identifier: str | None
    """Of the cluster; none where the role may not ask."""
    database_bytes: int
    properties: DatabaseProperties
    snapshot: Snapshot
    started_at: datetime
    duration_s: float
    compression: str
    dump: FileFacts
    roles: tuple[str, ...]
    """Every role that owns something in the database or was granted something."""
    globals: FileFacts | None = None
    globals_note: str | None = None
    """Why there are none."""

    @property
    def version(self) -> int:
        """The last migration that had been applied; 0: none."""
        return max((each.version for each in self.snapshot.versions), default=0)

    @property
    def ratio(self) -> float:
        """The dump's size as a part of the database's."""
        return self.dump.size_bytes / self.database_bytes if self.database_bytes else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """That a backup was looked at: a level it reached, or why it did not."""

    level: Level
    at: datetime
    duration_s: float
    sha256: str
    """Of the dump that was looked at."""
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptBackup:
    """A backup in its folder, with all that happened to it."""

    backup: Backup
    verifications: tuple[Verification, ...] = ()
    is_pinned: bool = False

    @property
    def verified(self) -> Verification | None:
        """The best verification since the last that failed; none: it must not be counted on."""
        best: Verification | None = None
        for each in self.verifications:
            if each.fault is not None or each.sha256 != self.backup.dump.sha256:
                best = None
            elif best is None or each.level.rank >= best.level.rank:
                best = each
        return best

    @property
    def is_good(self) -> bool:
        """Whether it was read to the end since anything was wrong with it."""
        verified = self.verified
        return verified is not None and verified.level.rank >= Level.READ.rank

    @property
    def size_bytes(self) -> int:
        """What it takes on disk."""
        extra = self.backup.globals.size_bytes if self.backup.globals is not None else 0
        return self.backup.dump.size_bytes + extra


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsLost:
    """What a database has that another does not, where nobody knows what its rows mean."""

    count: int
    """At least so many rows: a row that was changed is one."""
    detail: str
    """The same for people, by table."""


def backup_id(service: str, at: datetime, entropy: int) -> str:
    """Return a name that sorts by time; two of one second differ in the entropy's last 24 bits."""
    name = _UNFIT.sub("_", service)[:48]
    return f"{name}-{at:%Y%m%dT%H%M%SZ}-{entropy & 0xFFFFFF:06x}"


def is_backup_id(text: str) -> bool:
    """Say whether `text` may be an id, and so a part of a file's name."""
    return _ID.fullmatch(text) is not None


def tag_of(identifier: str) -> str:
    """Return the part of an id that fits into a database's name."""
    _, moment, suffix = identifier.rsplit("-", 2)
    return f"{moment.lower()}_{suffix}"


class _Envelope(msgspec.Struct):
    sha256: str
    backup: msgspec.Raw


def encoded(backup: Backup) -> bytes:
    """Return the text of a metadata file, which states its own checksum."""
    body = msgspec.json.format(msgspec.json.encode(backup, order="deterministic"), indent=2)
    return msgspec.json.encode(_Envelope(digest_of(body), msgspec.Raw(body))) + b"\n"


def decoded(text: bytes, *, identifier: str, file: str) -> Backup:
    """Read a metadata file.

    Raises:
        MetadataChanged: it is not what was written.
    """
    try:
        envelope = msgspec.json.decode(text, type=_Envelope)
        body = bytes(envelope.backup)
        if digest_of(body) != envelope.sha256:
            detail = "was changed: it does not have the checksum that it states"
            raise MetadataChanged(backup_id=identifier, file=file, detail=detail)
        backup = msgspec.json.decode(body, type=Backup)
    except msgspec.DecodeError as error:
        detail = f"cannot be understood ({error})"
        raise MetadataChanged(backup_id=identifier, file=file, detail=detail) from error
    if backup.id != identifier or backup.format != FORMAT:
        detail = f"is of backup {backup.id} in format {backup.format}"
        raise MetadataChanged(backup_id=identifier, file=file, detail=detail)
    return backup


def encoded_line(verification: Verification) -> bytes:
    """Return a verification as a line of the file beside its backup."""
    return msgspec.json.encode(verification) + b"\n"


def decoded_lines(text: bytes) -> tuple[Verification, ...]:
    """Read the verifications of a backup; a line that a crash has cut is none."""
    found = []
    for line in text.splitlines():
        try:
            found.append(msgspec.json.decode(line, type=Verification))
        except msgspec.DecodeError:
            continue
    return tuple(found)


def digest_of(body: bytes) -> str:
    """Return the SHA-256 in hexadecimal."""
    return hashlib.sha256(body).hexdigest()


def differences(before: Snapshot, after: Snapshot) -> Sequence[str]:
    """Say where a restored database is not what its backup's snapshot was."""
    found = []
    for name in sorted(before.tables.keys() | after.tables.keys()):
        was, now = before.tables.get(name), after.tables.get(name)
        if was is None or now is None:
            found.append(f"table {name} {'was not there' if was is None else 'is missing'}")
        elif was.rows != now.rows:
            found.append(f"table {name} has {now.rows} rows, not {was.rows}")
        elif None not in {was.digest, now.digest} and was.digest != now.digest:
            found.append(f"table {name} has other contents in its {was.rows} rows")
    found += [
        f"{name} is {after.facts.get(name)}, not {before.facts.get(name)}"
        for name in sorted(before.facts.keys() | after.facts.keys())
        if before.facts.get(name) != after.facts.get(name)
    ]
    if before.versions != after.versions:
        found.append("the record of applied migrations is another")
    return [*found, *(flaw for flaw in after.flaws if flaw not in before.flaws)]


def rows_lost(before: Mapping[str, TableFacts], now: Mapping[str, TableFacts]) -> RowsLost:
    """Return how many rows changed at least; for databases of which no more is known."""
    changed: dict[str, int] = {}
    for name in sorted((before.keys() | now.keys()) - _OF_THE_RUNNER):
        was, is_now = before.get(name), now.get(name)
        then = (was.rows, was.digest) if was is not None else (0, None)
        there = (is_now.rows, is_now.digest) if is_now is not None else (0, None)
        if then != there:
            changed[name] = max(1, abs(there[0] - then[0]))
    count = sum(changed.values())
    parts = ", ".join(f"{rows} in {name}" for name, rows in changed.items())
    return RowsLost(count=count, detail=f"at least {count} rows ({parts or 'none'})")
