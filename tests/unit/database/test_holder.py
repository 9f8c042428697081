"""The name in a lock file is for people: whatever stands there, reading it never fails."""

from pathlib import Path

import pytest

from tollkeeper.database.holder import DirectoryLock, Holder, read_holder


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b'{"pid": "x"}', b"\xff", b'{"pid":1}']
)
def test_unreadable_content_names_nobody(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lock").write_bytes(content)

    assert read_holder(tmp_path / "lock") is None


def test_a_missing_file_names_nobody(tmp_path: Path) -> None:
    assert read_holder(tmp_path / "lock") is None


def test_what_is_announced_later_adds_to_what_is_known(tmp_path: Path) -> None:
    lock = DirectoryLock.acquire(tmp_path / "lock")
    lock.announce(socket="/s")
    lock.announce(url="http://u")

    holder = read_holder(tmp_path / "lock")
    lock.release()

    assert holder is not None
    assert (holder.socket, holder.url) == ("/s", "http://u")
    assert read_holder(tmp_path / "lock") is None


def test_a_holder_is_described_in_words() -> None:
    holder = Holder(pid=7, command="tollkeeper up", url="http://127.0.0.1:5004")

    assert holder.described() == "process 7 (tollkeeper up), serving http://127.0.0.1:5004"
