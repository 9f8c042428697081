"""Backups made of values, for what decides about them without looking at a disk."""

import dataclasses
from datetime import UTC, datetime

from tollkeeper.migrate.backup_model import (
    AppliedVersion,
    Backup,
    DatabaseProperties,
    FileFacts,
    KeptBackup,
    Level,
    Snapshot,
    TableFacts,
    Verification,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)

SNAPSHOT = Snapshot(
    lsn="0/1",
    versions=(AppliedVersion(version=1, name="one", checksum="1"),),
    tables={
        "public.a": TableFacts(rows=3, size_bytes=1, digest="1"),
        "public.b": TableFacts(rows=3, size_bytes=1, digest="2"),
        "public.c": TableFacts(rows=3, size_bytes=1, digest="2"),
    },
    facts={"accounts": 1},
    flaws=("constraint c of t was never validated",),
)

BACKUP = Backup(
    id="credits-20260301T120000Z-00000a", run_id="run", reason="test", service="credits",
    tollkeeper="0.1.0", server_version="18.1", server_major=18, dump_version="18.1",
    database_oid=1, system_identifier="7", database_bytes=1000,
    properties=DatabaseProperties(
        name="credits", owner="ann", encoding="UTF8", collate="C", ctype="C", provider="c",
        locale=None, tablespace="pg_default", connection_limit=-1, acl=("ann=CTc/ann",),
        settings=(("", "work_mem=5MB"),),
    ),
    snapshot=SNAPSHOT, started_at=NOW, duration_s=1.5, compression="gzip",
    dump=FileFacts(name="credits-20260301T120000Z-00000a.dump", size_bytes=100, sha256="ab"),
    roles=("ann",),
)  # fmt: skip


def verification(
    level: Level, *, fault: str | None = None, sha256: str = BACKUP.dump.sha256
) -> Verification:
    return Verification(level=level, at=NOW, duration_s=1.0, sha256=sha256, fault=fault)


def kept_backup(
    *,
    verifications: tuple[Verification, ...] = (),
    at: datetime = NOW,
    service: str = "credits",
    is_pinned: bool = False,
    number: int = 10,
) -> KeptBackup:
    """Return a backup of a time; `number` tells two of one time apart."""
    return KeptBackup(
        backup=dataclasses.replace(
            BACKUP,
            id=f"{service}-{at:%Y%m%dT%H%M%SZ}-{number:06x}",
            service=service,
            started_at=at,
        ),
        verifications=verifications,
        is_pinned=is_pinned,
    )
