"""Which backups may go: examples; the invariants are properties."""

from datetime import timedelta

import pytest
from tests.backup_values import NOW, kept_backup, verification

from tollkeeper.kernel.errors import ConfigurationError
from tollkeeper.migrate.backup_model import KeptBackup, Level
from tollkeeper.migrate.retention import Policy, expired

GOOD = (verification(Level.READ),)
POLICY = Policy(days=30, minimum=3)


def aged(days: int, *, good: bool = True, is_pinned: bool = False) -> KeptBackup:
    return kept_backup(
        at=NOW - timedelta(days=days), verifications=GOOD if good else (), is_pinned=is_pinned
    )


def gone(*backups: KeptBackup) -> list[int]:
    """Return how many days old those are that may go."""
    found = expired(backups, now=NOW, policy=POLICY)
    return [(NOW - each.backup.started_at).days for each in found]


def test_the_old_go_when_there_are_enough_good_ones() -> None:
    assert [50, 40] == gone(aged(40), aged(50), aged(1), aged(2), aged(3))


def test_the_newest_good_ones_stay_however_old() -> None:
    assert [70] == gone(aged(40), aged(50), aged(60), aged(70))


def test_what_was_not_verified_does_not_count() -> None:
    assert [] == gone(aged(90), aged(1, good=False), aged(2, good=False), aged(3, good=False))
    assert [90, 80] == gone(
        aged(90, good=False), aged(80), aged(70), aged(60), aged(50), aged(1, good=False)
    )


def test_what_failed_since_does_not_count() -> None:
    failed = kept_backup(
        at=NOW, verifications=(*GOOD, verification(Level.CHECKSUM, fault="flipped"))
    )

    assert [] == gone(failed, aged(40), aged(50))


def test_what_is_pinned_stays() -> None:
    assert [60] == gone(aged(50, is_pinned=True), aged(60), aged(1), aged(2), aged(3))


def test_thirty_days_are_not_more_than_thirty() -> None:
    assert [31] == gone(aged(30), aged(31), aged(1), aged(2), aged(3))


@pytest.mark.parametrize("values", [{"days": 0}, {"minimum": 0}])
def test_the_last_good_one_cannot_be_given_up(values: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match="at least one"):
        Policy(**values)
