"""What runs, and every way in which nothing may run."""

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
)
from tollkeeper.migrate.model import AppliedMigration, Migration, migration_from
from tollkeeper.migrate.plan import missing, plan


def files(*versions: int) -> list[Migration]:
    return [
        Migration(database="credits", version=version, name="step", sql=f"SELECT {version};\n")
        for version in versions
    ]


def records(*migrations: Migration) -> list[AppliedMigration]:
    return [
        AppliedMigration(
            version=each.version,
            name=each.name,
            checksum=each.checksum,
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
    new = Migration(database="credits", version=1, name="step", sql="SELECT 2;\n")

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
    other = Migration(database="credits", version=1, name="other", sql="")

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


def test_name_gives_number_and_what() -> None:
    migration = migration_from("credits", "0042_add_holds.sql", "SELECT 1;")

    assert (42, "add_holds", "credits/0042_add_holds.sql") == (
        migration.version,
        migration.name,
        migration.file,
    )


LINES = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=8))


@given(lines=LINES)
def test_checksum_ignores_how_lines_end_and_nothing_else(lines: list[str]) -> None:
    def checksum(text: str) -> str:
        return migration_from("credits", "0001_x.sql", text).checksum

    assert checksum("\n".join(lines)) == checksum("\r\n".join(lines)) == checksum("\r".join(lines))
    assert checksum("\n".join(lines)) != checksum("\n".join(lines) + " ")


@pytest.mark.parametrize(("position", "line"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (6, 4)])
def test_line_of_a_position_counts_from_one(position: int, line: int) -> None:
    """Characters 1 to 6 of "a", "b", an empty line, "c"."""
    migration = migration_from("credits", "0001_x.sql", "a\nb\n\nc")

    assert line == migration.line_at(position)
