"""How much room is asked for, and what is said when there is less."""

import pytest

from tollkeeper.migrate.backup_errors import SpaceShort, sized
from tollkeeper.migrate.space import FLOOR_BYTES, check_space, dump_bytes, restore_bytes

GIB = 1024**3


def test_the_last_ratio_tells_the_next_dump() -> None:
    assert 15 * GIB + FLOOR_BYTES == dump_bytes(100 * GIB, 0.1)
    assert 75 * GIB + FLOOR_BYTES == dump_bytes(100 * GIB, None)
    assert FLOOR_BYTES == dump_bytes(0, 0.5)
    assert 15 * GIB + FLOOR_BYTES == restore_bytes(10 * GIB)


def test_what_does_not_fit_is_refused_with_both_figures() -> None:
    check_space(10, 10, what="a backup", where="/backups")

    with pytest.raises(SpaceShort) as refused:
        check_space(3 * GIB, 2 * GIB + 1, what="a backup", where="/backups")

    assert (
        "a backup needs about 3.0 GiB in /backups, where 2.0 GiB are free: make room, or prune "
        "backups"
    ) == str(refused.value)


@pytest.mark.parametrize(
    ("size_bytes", "said"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (5 * 1024**4, "5.0 TiB")],
)
def test_sizes_are_for_people(size_bytes: int, said: str) -> None:
    assert said == sized(size_bytes)
