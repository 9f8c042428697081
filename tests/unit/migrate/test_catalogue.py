"""The folder of backups on a real disk."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import pytest
from tests.backup_values import NOW, kept_backup, verification

from tollkeeper.migrate.backup_errors import BackupError, BackupMissing, DiskFull, FilesRefused
from tollkeeper.migrate.backup_model import Backup, Level
from tollkeeper.migrate.catalogue import DUMP, GLOBALS, VERIFIED, Catalogue, PartialFile
from tollkeeper.migrate.prune import prune, standings
from tollkeeper.migrate.retention import Policy

LATER = NOW + timedelta(days=100)


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    """A folder that is there and empty."""
    catalogue = Catalogue(tmp_path / "backups")
    catalogue.open()
    return catalogue


def put(catalogue: Catalogue, days: int, *, is_good: bool = True) -> Backup:
    """Put a backup of so many days before NOW into the folder."""
    backup = kept_backup(at=NOW - timedelta(days=days)).backup
    for suffix in (DUMP, GLOBALS):
        with PartialFile(catalogue.path(backup.id, suffix)) as file:
            file.write(b"content")
            file.finish()
    catalogue.add(backup)
    if is_good:
        catalogue.record(backup.id, verification(Level.READ))
    return backup


def names(catalogue: Catalogue) -> set[str]:
    return {path.name for path in catalogue.folder.iterdir()}


def test_a_file_has_its_name_when_it_is_whole(catalogue: Catalogue) -> None:
    path = catalogue.folder / "x"

    with PartialFile(path) as file:
        file.write(b"abc")
        assert {"x.partial"} == names(catalogue)
        facts = file.finish()
    with suppress(KeyError), PartialFile(catalogue.folder / "y") as file:
        file.write(b"abc")
        raise KeyError

    assert {"x"} == names(catalogue)
    assert ("x", 3) == (facts.name, facts.size_bytes)
    assert facts.sha256.startswith("ba7816bf")
    assert 0o600 == path.stat().st_mode & 0o777


def test_a_full_disk_is_told(catalogue: Catalogue) -> None:
    """The device that is always full."""
    (catalogue.folder / "x.partial").symlink_to("/dev/full")

    class Onto(PartialFile):
        def __enter__(self) -> Self:
            self._file = os.open("/dev/full", os.O_WRONLY)
            return self

    with pytest.raises(DiskFull, match="nothing of it remains"), Onto(catalogue.folder / "x") as f:
        f.write(b"abc")

    assert set() == names(catalogue)


def test_backups_are_listed_the_oldest_first(catalogue: Catalogue) -> None:
    newer, older = put(catalogue, 1), put(catalogue, 2, is_good=False)

    assert [(older.id, False), (newer.id, True)] == [
        (each.backup.id, each.is_good) for each in catalogue.list()
    ]
    assert [] == list(catalogue.list("access"))


def test_one_that_cannot_be_understood_hides_no_other(catalogue: Catalogue) -> None:
    good, bad = put(catalogue, 1), put(catalogue, 2)
    catalogue.path(bad.id, ".json").write_text("{}")
    unreadable: list[BackupError] = []

    assert [good.id] == [each.backup.id for each in catalogue.list(unreadable=unreadable.append)]
    assert 1 == len(unreadable)


def test_a_line_that_was_cut_spoils_none_behind_it(catalogue: Catalogue) -> None:
    backup = put(catalogue, 1)
    path = catalogue.path(backup.id, VERIFIED)
    path.write_bytes(path.read_bytes()[:-5])

    catalogue.record(backup.id, verification(Level.DEEP))

    assert [Level.DEEP] == [each.level for each in catalogue.read(backup.id).verifications]


@pytest.mark.parametrize("identifier", ["../etc/passwd", "credits-20260301T120000Z-ffffff", ""])
def test_what_is_no_backup_is_missing(catalogue: Catalogue, identifier: str) -> None:
    with pytest.raises(BackupMissing):
        catalogue.read(identifier)


def test_pins_are_put_and_taken(catalogue: Catalogue) -> None:
    backup = put(catalogue, 1)

    catalogue.pin(backup.id)
    pinned = catalogue.read(backup.id).is_pinned
    catalogue.unpin(backup.id)

    assert [True, False] == [pinned, catalogue.read(backup.id).is_pinned]


def test_leftovers_are_ours_and_of_no_backup(catalogue: Catalogue) -> None:
    kept, lost = put(catalogue, 1), put(catalogue, 2)
    catalogue.path(lost.id, ".json").unlink()
    (catalogue.folder / f"{kept.id}.dump.partial").write_text("x")
    for stranger in ("notes.txt", "notes.partial", "x.dump"):
        (catalogue.folder / stranger).write_text("mine")

    left = {each.path.name for each in catalogue.leftovers(before=datetime.max.replace(tzinfo=UTC))}

    assert {
        f"{lost.id}.dump",
        f"{lost.id}.globals.sql",
        f"{lost.id}.verified.jsonl",
        f"{kept.id}.dump.partial",
    } == left
    assert [] == list(catalogue.leftovers(before=NOW - timedelta(days=9_999)))


def test_nothing_is_deleted_without_consent_and_all_that_is_deleted_is_logged(
    catalogue: Catalogue,
) -> None:
    old = put(catalogue, 40)
    for days in (1, 2, 3):
        put(catalogue, days)
    events: list[Mapping[str, object]] = []
    before = names(catalogue)

    planned = prune(catalogue, now=NOW, policy=Policy(), log=events.append)
    untouched = names(catalogue)
    done = prune(catalogue, now=NOW, policy=Policy(), log=events.append, confirmed=True)

    assert before == untouched
    assert [old.id] == [each.backup.id for each in planned.backups]
    assert planned.freed_bytes == done.freed_bytes == old.dump.size_bytes
    assert before - names(catalogue) == {each for each in before if each.startswith(old.id)}
    assert [("backup.deleted", old.id, 40)] == [
        (each["event"], each["backup"], each["age_days"]) for each in events
    ]


def test_how_a_database_is_backed_up(catalogue: Catalogue) -> None:
    put(catalogue, 9)
    good = put(catalogue, 5)
    newest = put(catalogue, 1, is_good=False)

    ledger, access = standings(catalogue, ("credits", "access"))

    assert (3, newest.started_at, good.started_at, Level.READ) == (
        ledger.count,
        ledger.last_at,
        ledger.good_at,
        ledger.verified_level,
    )
    assert (0, None, None, None) == (
        access.count,
        access.last_at,
        access.good_at,
        access.verified_level,
    )
    assert ledger.free_bytes > 0


@contextmanager
def powerless() -> Iterator[None]:
    """Be nobody: the superuser may read everything."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_files_that_we_may_not_read_are_said_and_keep_nobody_from_the_others() -> None:
    with TemporaryDirectory() as place:
        catalogue = Catalogue(Path(place))
        hidden, shown = put(catalogue, 2), put(catalogue, 1)
        catalogue.folder.chmod(0o755)
        for path in catalogue.folder.iterdir():
            path.chmod(0o000 if path.name.startswith(hidden.id) else 0o644)
        told: list[BackupError] = []

        with powerless():
            found = catalogue.list(unreadable=told.append)
            with pytest.raises(FilesRefused, match="may not read"):
                catalogue.read(hidden.id)

    assert [shown.id] == [kept.backup.id for kept in found]
    assert [FilesRefused] == [type(error) for error in told]


def test_folder_that_we_may_not_read_is_said() -> None:
    with TemporaryDirectory() as place:
        catalogue = Catalogue(Path(place))
        backup = put(catalogue, 1)
        catalogue.folder.chmod(0o000)
        try:
            with powerless():
                looks: list[Callable[[], object]] = [
                    catalogue.list,
                    lambda: catalogue.read(backup.id),
                ]
                for look in looks:
                    with pytest.raises(FilesRefused):
                        look()
        finally:
            catalogue.folder.chmod(0o700)
