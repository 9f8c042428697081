"""Deletes the backups that may go, and says of every database how it is backed up.

What may go is decided in `retention.py`. Invariant: without consent nothing is deleted.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from tollkeeper.migrate.backup_model import KeptBackup, Level
from tollkeeper.migrate.catalogue import Catalogue, Leftover
from tollkeeper.migrate.progress import Log
from tollkeeper.migrate.retention import LEFTOVER_AGE, Policy, expired


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruning:
    """What was deleted, or would be."""

    backups: Sequence[KeptBackup]
    leftovers: Sequence[Leftover]
    is_done: bool

    @property
    def freed_bytes(self) -> int:
        """The room that it makes."""
        kept = sum(each.size_bytes for each in self.backups)
        return kept + sum(each.size_bytes for each in self.leftovers)


def prune(
    catalogue: Catalogue, *, now: datetime, policy: Policy, log: Log, confirmed: bool = False
) -> Pruning:
    """Delete what may go if that was `confirmed`; otherwise only say what would."""
    pruning = Pruning(
        backups=expired(catalogue.list(), now=now, policy=policy),
        leftovers=catalogue.leftovers(before=now - LEFTOVER_AGE),
        is_done=confirmed,
    )
    if not confirmed:
        return pruning
    for kept in pruning.backups:
        catalogue.delete(kept.backup.id)
        log(
            {
                "event": "backup.deleted",
                "backup": kept.backup.id,
                "service": kept.backup.service,
                "age_days": (now - kept.backup.started_at).days,
                "bytes": kept.size_bytes,
            }
        )
    for left in pruning.leftovers:
        with suppress(FileNotFoundError):
            left.path.unlink()
        log({"event": "backup.leftover_deleted", "file": left.path.name, "bytes": left.size_bytes})
    return pruning


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupStanding:
    """How one database is backed up."""

    service: str
    count: int
    size_bytes: int
    last_at: datetime | None
    good_at: datetime | None
    """When the last backup was begun that has been read to its end: what an alert looks at."""
    verified_at: datetime | None
    """When that one was last verified."""
    verified_level: Level | None
    free_bytes: int
    """Of the folder's file system."""


def standings(catalogue: Catalogue, services: Iterable[str]) -> Sequence[BackupStanding]:
    """Return how each of `services` is backed up."""
    kept, free_bytes = catalogue.list(), catalogue.free_bytes()
    return [
        _standing(service, [each for each in kept if each.backup.service == service], free_bytes)
        for service in services
    ]


def _standing(service: str, kept: Sequence[KeptBackup], free_bytes: int) -> BackupStanding:
    good = next((each for each in reversed(kept) if each.is_good), None)
    verified = good.verified if good is not None else None
    return BackupStanding(
        service=service,
        count=len(kept),
        size_bytes=sum(each.size_bytes for each in kept),
        last_at=kept[-1].backup.started_at if kept else None,
        good_at=good.backup.started_at if good is not None else None,
        verified_at=verified.at if verified is not None else None,
        verified_level=verified.level if verified is not None else None,
        free_bytes=free_bytes,
    )
