"""What a backup's metadata say of themselves, and how snapshots are compared."""

import dataclasses
import json

import pytest
from tests.backup_values import BACKUP, SNAPSHOT, kept_backup, verification

from tollkeeper.migrate.backup_errors import MetadataChanged
from tollkeeper.migrate.backup_model import (
    Backup,
    Level,
    TableFacts,
    backup_id,
    decoded,
    decoded_lines,
    differences,
    encoded,
    encoded_line,
    is_backup_id,
    rows_lost,
    tag_of,
)


def read(text: bytes) -> Backup:
    return decoded(text, identifier=BACKUP.id, file="file.json")


def test_metadata_are_read_as_they_were_written() -> None:
    assert BACKUP == read(encoded(BACKUP))


def test_metadata_state_their_checksum_and_are_json_for_people() -> None:
    text = encoded(BACKUP)

    assert {"sha256", "backup"} == set(json.loads(text))
    assert text.count(b"\n") > 30


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"rows": 3', b'"rows": 4'),
        (b'"rows": 3', b'"rows":  3'),
        (b'"sha256":"', b'"sha256":"0'),
        (encoded(BACKUP)[500:], b""),
        (encoded(BACKUP), b""),
        (encoded(BACKUP), b"{}"),
    ],
)
def test_metadata_that_were_edited_are_refused(old: bytes, new: bytes) -> None:
    text = encoded(BACKUP)
    assert old in text

    with pytest.raises(MetadataChanged, match="use another one"):
        read(text.replace(old, new))


def test_metadata_of_another_backup_are_refused() -> None:
    other = dataclasses.replace(BACKUP, id="other-20260301T120000Z-0000ff")

    with pytest.raises(MetadataChanged, match="is of backup other"):
        read(encoded(other))


def test_a_line_that_was_cut_is_no_verification() -> None:
    whole = verification(Level.READ)

    assert (whole,) == decoded_lines(encoded_line(whole) + encoded_line(whole)[:20])


def test_an_id_sorts_by_time_and_fits_into_names() -> None:
    first = backup_id("credits", BACKUP.started_at, 0xFFF00000A)

    assert "credits-20260301T120000Z-00000a" == first
    assert is_backup_id(first)
    assert "20260301t120000z_00000a" == tag_of(first)


@pytest.mark.parametrize("text", ["", "../x", "a/b-20260301T120000Z-00000a", "credits"])
def test_what_leads_elsewhere_is_no_id(text: str) -> None:
    assert not is_backup_id(text)


def test_the_level_is_the_best_since_the_last_fault() -> None:
    read_, deep = verification(Level.READ), verification(Level.DEEP)
    checksum, fault = verification(Level.CHECKSUM), verification(Level.CHECKSUM, fault="cut")
    other = verification(Level.DEEP, sha256="of another dump")

    assert None is kept_backup().verified
    assert deep == kept_backup(verifications=(read_, deep, checksum)).verified
    assert None is kept_backup(verifications=(deep, fault)).verified
    assert read_ == kept_backup(verifications=(deep, fault, read_)).verified
    assert None is kept_backup(verifications=(other,)).verified
    assert [False, True] == [
        kept_backup(verifications=(each,)).is_good for each in (checksum, read_)
    ]


def test_every_difference_of_snapshots_is_told() -> None:
    now = dataclasses.replace(
        SNAPSHOT,
        tables={
            "public.a": TableFacts(rows=4, size_bytes=1, digest="1"),
            "public.b": TableFacts(rows=3, size_bytes=9, digest="3"),
            "public.d": TableFacts(rows=1, size_bytes=1),
        },
        facts={"accounts": 2, "extra": "x"},
        versions=(),
        flaws=("index i is invalid", *SNAPSHOT.flaws),
    )

    assert [
        "table public.a has 4 rows, not 3",
        "table public.b has other contents in its 3 rows",
        "table public.c is missing",
        "table public.d was not there",
        "accounts is 2, not 1",
        "extra is x, not None",
        "the record of applied migrations is another",
        "index i is invalid",
    ] == list(differences(SNAPSHOT, now))
    assert [] == list(differences(SNAPSHOT, SNAPSHOT))


def test_sizes_and_tables_too_big_for_a_digest_make_no_difference() -> None:
    tables = {
        name: dataclasses.replace(table, size_bytes=77, digest=None)
        for name, table in SNAPSHOT.tables.items()
    }

    assert [] == list(differences(SNAPSHOT, dataclasses.replace(SNAPSHOT, tables=tables)))


def test_a_changed_row_is_a_lost_one() -> None:
    now = {
        "public.a": TableFacts(rows=9, size_bytes=1, digest="1"),
        "public.b": TableFacts(rows=3, size_bytes=9, digest="4"),
        "public.c": SNAPSHOT.tables["public.c"],
    }

    lost = rows_lost(SNAPSHOT.tables, now)

    assert (7, "at least 7 rows (6 in public.a, 1 in public.b)") == (lost.count, lost.detail)
    assert 0 == rows_lost(now, now).count


def test_what_the_runner_writes_down_is_no_loss() -> None:
    log = {"public.tollkeeper_migration_log": TableFacts(rows=3, size_bytes=8192, digest="1")}

    assert 0 == rows_lost({}, log).count
