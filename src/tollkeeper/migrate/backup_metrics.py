"""How the databases are backed up, read from the folder of backups when somebody scrapes.

Times are of the backup that is meant, so that an alert can look at their age; 0: there is none. A
folder that is missing or cannot be read leaves only `migrate_backup_folder_readable`, 0.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from tollkeeper.migrate.backup_errors import FilesRefused
from tollkeeper.migrate.catalogue import Catalogue
from tollkeeper.migrate.prune import BackupStanding, standings


class BackupCollector(Collector):
    """Gauges of the folder of backups; `migrate_backup_*` in the exposition."""

    def __init__(
        self, catalogue: Catalogue, databases: Sequence[str], registry: CollectorRegistry
    ) -> None:
        self._catalogue = catalogue
        self._databases = databases
        registry.register(self)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Look at the folder now."""
        readable = GaugeMetricFamily(
            "migrate_backup_folder_readable", "1 if the folder of backups could be read."
        )
        try:
            next(self._catalogue.folder.iterdir(), None)
            found = standings(self._catalogue, self._databases)
        except (OSError, FilesRefused):
            readable.add_metric((), 0)
            yield readable
            return
        readable.add_metric((), 1)
        yield readable
        yield from _families(found)


def _families(found: Sequence[BackupStanding]) -> Iterator[GaugeMetricFamily]:
    free = GaugeMetricFamily(
        "migrate_backup_free_bytes", "Room on the file system of the folder of backups."
    )
    for each in found[:1]:
        free.add_metric((), each.free_bytes)
    yield free
    families = (
        ("kept", "Backups that are kept.", lambda each: each.count),
        ("bytes", "Room that they take.", lambda each: each.size_bytes),
        (
            "last_timestamp_seconds", "When the last one was begun.",
            lambda each: _seconds(each.last_at),
        ),
        (
            "last_good_timestamp_seconds",
            "When the last one was begun that has been read to its end and was whole.",
            lambda each: _seconds(each.good_at),
        ),
        (
            "last_verified_timestamp_seconds", "When that one was last verified.",
            lambda each: _seconds(each.verified_at),
        ),
    )  # fmt: skip
    for name, help_text, value_of in families:
        family = GaugeMetricFamily(f"migrate_backup_{name}", help_text, labels=("database",))
        for each in found:
            family.add_metric((each.service,), value_of(each))
        yield family


def _seconds(moment: datetime | None) -> float:
    return 0.0 if moment is None else moment.timestamp()
