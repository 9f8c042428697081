"""Decides which backups may go (pure).

Invariants: nothing younger than the policy's days goes, nothing that is pinned, and none of the
newest `minimum` good backups of its database: good is what was read to the end since anything was
wrong with it. While there are fewer good ones than that, nothing of that database goes at all.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tollkeeper.kernel.errors import ConfigurationError
from tollkeeper.migrate.backup_model import KeptBackup

LEFTOVER_AGE = timedelta(days=1)
"""A file that no backup owns and that nobody has written to for so long was left by a kill."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How long backups are kept, and how many good ones however old."""

    days: int = 30
    minimum: int = 3

    def __post_init__(self) -> None:
        if self.days < 1 or self.minimum < 1:
            raise ConfigurationError(
                problem="Backups are kept for at least one day, and at least one good one is."
            )


def expired(
    backups: Iterable[KeptBackup], *, now: datetime, policy: Policy
) -> Sequence[KeptBackup]:
    """Return the backups that may be deleted, the oldest first."""
    by_service: dict[str, list[KeptBackup]] = defaultdict(list)
    for each in backups:
        by_service[each.backup.service].append(each)
    found = [
        each for kept in by_service.values() for each in _expired(kept, now=now, policy=policy)
    ]
    return sorted(found, key=_age)


def _expired(
    backups: Sequence[KeptBackup], *, now: datetime, policy: Policy
) -> Sequence[KeptBackup]:
    newest_first = sorted(backups, key=_age, reverse=True)
    good = [each.backup.id for each in newest_first if each.is_good]
    if len(good) < policy.minimum:
        return ()
    needed = set(good[: policy.minimum])
    limit = now - timedelta(days=policy.days)
    return [
        each
        for each in newest_first
        if each.backup.started_at < limit and not each.is_pinned and each.backup.id not in needed
    ]


def _age(kept: KeptBackup) -> tuple[datetime, str]:
    return (kept.backup.started_at, kept.backup.id)
