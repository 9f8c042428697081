"""Notes outside the database: on a disk that tears writes, and at a target that may not answer."""

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tollkeeper.credits.errors import PublicationFailed
from tollkeeper.credits.note import make_key, notes_in
from tollkeeper.credits.publication import CheckpointFile, HttpTarget

KEY = make_key("example.com/log", bytes(32))
NOTES = [KEY.sign(f"{KEY.name}\nnote {number}\nof three\n") for number in range(3)]
WHOLE = "".join(f"{note}\n" for note in NOTES).encode()
ENDS = [WHOLE.index(f"{note}\n".encode()) + len(f"{note}\n".encode()) for note in NOTES]


def opened(path: Path) -> CheckpointFile:
    return CheckpointFile(path, KEY.name)


def notes_of(path: Path) -> list[str]:
    return list(notes_in(path.read_text(encoding="utf-8").splitlines(keepends=True)))


def test_a_new_file_has_no_last_note_and_takes_some(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    with opened(path) as file:
        assert file.is_ours
        assert file.last_note() is None
        file.append(NOTES[:2])
        file.append(NOTES[2:])

        assert NOTES[2] == file.last_note()
        assert 0 == file.mended_bytes

    assert NOTES == notes_of(path)


@given(cut=st.integers(0, len(WHOLE)))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_write_torn_anywhere_is_mended_and_done_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "notes"
    path.write_bytes(WHOLE[:cut])
    with opened(path) as file:
        last = file.last_note()
        there = 0 if last is None else NOTES.index(last) + 1
        file.append(NOTES[there:])

    assert sum(end <= cut for end in ENDS) == there
    assert cut - (ENDS[there - 1] if there else 0) == file.mended_bytes
    assert WHOLE == path.read_bytes()


def test_zeros_left_by_a_lost_page_are_mended(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    for whole, last in ((WHOLE[: ENDS[1]], NOTES[1]), (b"", None)):
        path.write_bytes(whole + bytes(4_096))
        with opened(path) as file:
            assert last == file.last_note()

        assert whole == path.read_bytes()


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    with opened(path) as file, opened(path) as other:
        assert (True, False) == (file.is_ours, other.is_ours)
    with opened(path) as other:
        assert other.is_ours


@pytest.mark.parametrize(
    "content",
    [b"text\n\ntext\n\n", b"\n\nx\n\n" * 50_000, b"x" * 200_000, "\n\n— a b\n\n".encode()],
)
def test_a_file_that_holds_something_else_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes"
    path.write_bytes(content)
    with opened(path) as file, pytest.raises(PublicationFailed, match=str(path)):
        file.last_note()

    assert content == path.read_bytes()


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(PublicationFailed, match="No such file"):
        opened(tmp_path / "missing" / "notes").__enter__()


ON_A_SMALL_DISK = """
import resource, signal, sys
from pathlib import Path
from tollkeeper.credits.errors import PublicationFailed
from tollkeeper.credits.publication import CheckpointFile

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))  # as a disk that is full
with CheckpointFile(Path(sys.argv[1]), sys.argv[2]) as file:
    try:
        file.append(sys.argv[3:])
    except PublicationFailed as error:
        print(error)
"""


def test_a_disk_that_takes_half_a_note_is_said_and_mended(tmp_path: Path) -> None:
    """In a process of its own: the limit is the whole process's."""
    path = tmp_path / "notes"
    done = subprocess.run(
        [sys.executable, "-c", ON_A_SMALL_DISK, str(path), KEY.name, *NOTES],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    size = path.stat().st_size
    with opened(path) as file:
        last = file.last_note()

    assert f"not published to {path}: File too large" in done.stdout
    assert 300 == size
    assert NOTES[(300 // ENDS[0]) - 1] == last
    assert 300 - file.mended_bytes == path.stat().st_size


class Target(http.server.BaseHTTPRequestHandler):
    """Keeps what it is sent, and answers what it is told to."""

    status = 201
    taken: list[tuple[str, str, str]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        number, key = self.headers["Tollkeeper-Checkpoint"], self.headers["Idempotency-Key"]
        type(self).taken.append((number, key, body))
        self.send_response(type(self).status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def running_target(status: int = 201) -> Iterator[tuple[str, type[Target]]]:
    kind = type("OneTarget", (Target,), {"status": status, "taken": []})
    with http.server.HTTPServer(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/notes?secret=1", kind
        finally:
            server.shutdown()
            thread.join()


async def test_a_target_is_sent_the_note_to_the_byte() -> None:
    with running_target() as (url, kind):
        target = HttpTarget(url)
        for _ in range(2):
            await target.send(7, NOTES[0])
        await target.close()

    assert ["7", "7"] == [number for number, _, _ in kind.taken]
    assert {NOTES[0]} == {body for _, _, body in kind.taken}
    assert 1 == len({key for _, key, _ in kind.taken})


@pytest.mark.parametrize("status", [302, 404, 500])
async def test_a_target_that_does_not_take_it_is_said_without_its_url(status: int) -> None:
    with running_target(status) as (url, _):
        target = HttpTarget(url)
        with pytest.raises(PublicationFailed) as failed:
            await target.send(7, NOTES[0])
        await target.close()

    assert f"127.0.0.1: checkpoint 7 was answered {status}" in str(failed.value)
    assert "secret" not in str(failed.value)


async def test_a_target_that_is_not_there_is_said() -> None:
    target = HttpTarget("http://127.0.0.1:1/")
    with pytest.raises(PublicationFailed, match="connection"):
        await target.send(1, NOTES[0])
    await target.close()
