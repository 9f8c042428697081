"""What a scrape says of the folder of backups."""

from pathlib import Path

from prometheus_client import CollectorRegistry
from tests.backup_values import BACKUP, NOW, verification

from tollkeeper.migrate.backup_metrics import BackupCollector
from tollkeeper.migrate.backup_model import Level
from tollkeeper.migrate.catalogue import Catalogue

SERIES = (
    "kept", "bytes", "last_timestamp_seconds", "last_good_timestamp_seconds",
    "last_verified_timestamp_seconds",
)  # fmt: skip


def scraped(folder: Path) -> tuple[CollectorRegistry, dict[str, float | None]]:
    registry = CollectorRegistry()
    BackupCollector(Catalogue(folder), ("credits", "access"), registry)
    found = {
        name: registry.get_sample_value(f"migrate_backup_{name}", {"database": "credits"})
        for name in SERIES
    }
    return registry, found


def test_database_without_backup_has_series_that_say_so(tmp_path: Path) -> None:
    registry, found = scraped(tmp_path)

    assert dict.fromkeys(SERIES, 0) == found
    assert (registry.get_sample_value("migrate_backup_free_bytes") or 0) > 0
    assert 1 == registry.get_sample_value("migrate_backup_folder_readable")


def test_last_good_backup_is_the_one_that_was_read(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)
    catalogue.add(BACKUP)
    _, before = scraped(tmp_path)
    catalogue.record(BACKUP.id, verification(Level.READ))

    _, found = scraped(tmp_path)

    assert (1, 100, NOW.timestamp(), 0) == (
        before["kept"], before["bytes"], before["last_timestamp_seconds"],
        before["last_good_timestamp_seconds"],
    )  # fmt: skip
    assert NOW.timestamp() == found["last_good_timestamp_seconds"]
    assert NOW.timestamp() == found["last_verified_timestamp_seconds"]


def test_folder_that_cannot_be_read_is_told_and_nothing_is_guessed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")

    for place in ("file", "missing"):
        registry, found = scraped(tmp_path / place)

        assert 0 == registry.get_sample_value("migrate_backup_folder_readable")
        assert dict.fromkeys(SERIES) == found
