"""Which version was before the last run."""

from datetime import UTC, datetime
from uuid import UUID

import pytest

from tollkeeper.migrate.back import before_last_run
from tollkeeper.migrate.errors import NothingToTakeBack
from tollkeeper.migrate.model import AppliedMigration

FIRST, SECOND = UUID(int=1), UUID(int=2)


def applied(version: int, run: UUID, *, is_adopted: bool = False) -> AppliedMigration:
    return AppliedMigration(
        version=version, name="step", checksum="00", applied_at=datetime(2026, 1, 2, tzinfo=UTC),
        duration_ms=1, digest=None if is_adopted else "11", run_id=run,
    )  # fmt: skip


def test_all_files_of_the_last_run_are_taken_back() -> None:
    files = (applied(1, FIRST), applied(2, SECOND), applied(3, SECOND))

    assert 1 == before_last_run("credits", files)


def test_files_that_a_run_has_adopted_are_not_of_that_run() -> None:
    files = (applied(1, FIRST, is_adopted=True), applied(2, FIRST))

    assert 1 == before_last_run("credits", files)


def test_run_that_has_only_adopted_files_has_applied_nothing() -> None:
    with pytest.raises(NothingToTakeBack):
        before_last_run("credits", (applied(1, FIRST, is_adopted=True),))
