"""The embedded server's settings, as a function of the machine."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.database.server_settings import server_settings

MEBIBYTE = 1024**2
GIBIBYTE = 1024**3
SIZES = ("shared_buffers", "effective_cache_size", "max_wal_size", "min_wal_size")


def megabytes(value: str) -> int:
    found = re.fullmatch(r"(\d+)MB", value)
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize(
    ("memory_bytes", "expected"),
    [
        (256 * MEBIBYTE, "128MB"),
        (2 * GIBIBYTE, "512MB"),
        (4 * GIBIBYTE, "1024MB"),
        (512 * GIBIBYTE, "2048MB"),
    ],
)
def test_buffers_are_a_quarter_of_memory_within_bounds(memory_bytes: int, expected: str) -> None:
    settings = server_settings(
        memory_bytes=memory_bytes, disk_free_bytes=100 * GIBIBYTE, wal_compression="lz4"
    )

    assert expected == settings["shared_buffers"]


@pytest.mark.parametrize(
    ("disk_free_bytes", "expected"),
    [(1 * GIBIBYTE, "1024MB"), (32 * GIBIBYTE, "4096MB"), (1024 * GIBIBYTE, "8192MB")],
)
def test_the_log_leaves_room_on_a_small_disk(disk_free_bytes: int, expected: str) -> None:
    settings = server_settings(
        memory_bytes=4 * GIBIBYTE, disk_free_bytes=disk_free_bytes, wal_compression="pglz"
    )

    assert expected == settings["max_wal_size"]


@given(
    memory_bytes=st.integers(min_value=1, max_value=2**50),
    disk_free_bytes=st.integers(min_value=0, max_value=2**60),
)
def test_no_machine_is_traded_against_durability(memory_bytes: int, disk_free_bytes: int) -> None:
    settings = server_settings(
        memory_bytes=memory_bytes, disk_free_bytes=disk_free_bytes, wal_compression="pglz"
    )

    assert {settings[name] for name in ("fsync", "full_page_writes", "synchronous_commit")} == {
        "on"
    }
    assert settings["listen_addresses"] == ""
    assert all(megabytes(settings[name]) > 0 for name in SIZES)
    assert megabytes(settings["min_wal_size"]) < megabytes(settings["max_wal_size"])
    assert megabytes(settings["shared_buffers"]) <= megabytes(settings["effective_cache_size"])
