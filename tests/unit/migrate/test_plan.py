"""What runs, and every way in which nothing may run."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.migrate.errors import (
    BadMigrationName,
    DatabaseNewer,
    DuplicateVersion,
    MigrationChanged,
    MigrationMissing,
    MigrationOutOfOrder,
    MissingVersion,
    NotReversible,
    UnknownVersion,
)
from tollkeeper.migrate.model import AppliedMigration, Migration
from tollkeeper.migrate.plan import missing, plan, plan_down, reworded
from tollkeeper.migrate.script import migration_from


def files(*versions: int) -> list[Migration]:
    return [step(version, f"SELECT {version};") for version in versions]


def step(version: int, up: str, name: str = "step") -> Migration:
    return migration_from("credits", f"{version:04}_{name}.sql", f"-- up\n{up}\n")


def records(*migrations: Migration) -> list[AppliedMigration]:
    return [
        AppliedMigration(
            version=each.version,
            name=each.name,
            checksum=each.checksum,
            digest=each.digest,
            source=each.source,
            applied_at=datetime(2026, 1, 1, tzinfo=UTC),
            duration_ms=1,
        )
        for each in migrations
    ]


@given(count=st.integers(0, 30), data=st.data())
def test_any_beginning_is_completed_in_order(count: int, data: st.DataObject) -> None:
    available = files(*range(1, count + 1))
    done = data.draw(st.integers(0, count))
    shuffled = data.draw(st.permutations(available))

    steps = plan("credits", records(*available[:done]), shuffled)

    assert tuple(available[done:]) == steps
    assert steps == missing(records(*available[:done]), available)


def test_changed_file_is_refused_and_named() -> None:
    [old] = files(1)
    new = step(1, "SELECT 2;")

    with pytest.raises(MigrationChanged) as caught:
        plan("credits", records(old), [new])

    assert "credits/0001_step.sql" == caught.value.file
    assert (old.checksum, new.checksum) == (
        caught.value.applied_checksum,
        caught.value.file_checksum,
    )


def test_newer_database_is_refused_to_the_runner_but_lacks_nothing() -> None:
    available = files(1, 2, 3)

    with pytest.raises(DatabaseNewer) as caught:
        plan("credits", records(*available), available[:2])

    assert (3, 2) == (caught.value.version, caught.value.known_version)
    assert () == missing(records(*available), available[:2])


def test_left_out_number_is_refused() -> None:
    with pytest.raises(MissingVersion) as caught:
        plan("credits", [], files(1, 3))

    assert 2 == caught.value.version


def test_two_files_with_one_number_are_refused() -> None:
    [twin] = files(1)
    other = step(1, "SELECT 1;", "other")

    with pytest.raises(DuplicateVersion) as caught:
        plan("credits", [], [twin, other])

    assert ("credits/0001_other.sql", "credits/0001_step.sql") == caught.value.files


def test_earlier_file_that_was_never_applied_is_refused() -> None:
    one, two, three = files(1, 2, 3)

    with pytest.raises(MigrationOutOfOrder) as caught:
        plan("credits", records(one, three), [one, two, three])

    assert ("credits/0002_step.sql", "credits/0003_step.sql") == (
        caught.value.file,
        caught.value.later_file,
    )


def test_applied_migration_without_number_among_the_files_is_refused() -> None:
    [one] = files(1)
    stray = AppliedMigration(
        version=0,
        name="stray",
        checksum=one.checksum,
        applied_at=datetime(2026, 1, 1, tzinfo=UTC),
        duration_ms=1,
    )

    with pytest.raises(MigrationMissing, match="0000_stray"):
        plan("credits", [stray], [one])


@pytest.mark.parametrize(
    "name",
    ["1_x.sql", "0000_x.sql", "0001-x.sql", "0001_X.sql", "0001_.sql", "0001_a__b.sql", "x.sql"],
)
def test_name_that_does_not_say_its_number_is_refused(name: str) -> None:
    with pytest.raises(BadMigrationName) as caught:
        migration_from("credits", name, "")

    assert f"credits/{name}" == caught.value.file


def test_what_reads_otherwise_and_says_the_same_is_no_change() -> None:
    [old] = files(1)
    new = step(1, "-- Why.\nSELECT\n    1;  ")

    assert () == plan("credits", records(old), [new])
    assert (new,) == reworded(records(old), [new])


def test_difference_to_what_was_applied_is_shown() -> None:
    old, new = step(1, "SELECT 1;\nSELECT 2;"), step(1, "SELECT 1;\nSELECT 3;")

    with pytest.raises(MigrationChanged, match=r"(?s)-SELECT 2;\n\+SELECT 3;"):
        plan("credits", records(old), [new])


def test_old_record_without_digest_is_held_to_the_letter() -> None:
    [old] = files(1)
    past = [replace(record, digest=None, source=None) for record in records(old)]

    assert () == plan("credits", past, [old])
    with pytest.raises(MigrationChanged):
        plan("credits", past, [step(1, "-- Why.\nSELECT 1;")])


@given(count=st.integers(0, 12), data=st.data())
def test_up_to_a_version_stops_there(count: int, data: st.DataObject) -> None:
    available = files(*range(1, count + 1))
    done = data.draw(st.integers(0, count))
    to = data.draw(st.integers(done, count))

    assert tuple(available[done:to]) == plan(
        "credits", records(*available[:done]), available, to=to
    )


@pytest.mark.parametrize("to", [1, 4])
def test_version_behind_or_unknown_is_refused(to: int) -> None:
    available = files(1, 2, 3)

    with pytest.raises(UnknownVersion, match=r"2\.\.3"):
        plan("credits", records(*available[:2]), available, to=to)


def reversible(version: int) -> Migration:
    source = f"-- up\nSELECT {version};\n-- down\nSELECT -{version};\n"
    return migration_from("credits", f"{version:04}_step.sql", source)


def test_way_down_is_the_way_up_backwards() -> None:
    available = [reversible(version) for version in (1, 2, 3)]

    assert (available[2], available[1]) == plan_down(
        "credits", records(*available), available, to=1
    )
    assert () == plan_down("credits", records(*available), available, to=3)


def test_file_without_way_back_is_named_before_anything_is_taken_back() -> None:
    available = [reversible(1), *files(2), reversible(3)]

    with pytest.raises(NotReversible) as caught:
        plan_down("credits", records(*available), available, to=1)

    assert ("credits/0002_step.sql",) == caught.value.files


@pytest.mark.parametrize("to", [-1, 2])
def test_way_down_to_nowhere_is_refused(to: int) -> None:
    available = [reversible(1)]

    with pytest.raises(UnknownVersion):
        plan_down("credits", records(*available), available, to=to)
