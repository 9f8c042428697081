"""PostgreSQL's own disk fills under load: callers are told to wait; nothing is lost or doubled."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent.parent / "full_disk_process.py"
ROUNDS = 2


def rounds() -> list[int]:
    """Return how often to fill a small disk: never where this machine lets nobody mount one."""
    probe = subprocess.run(
        ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"]), "true"],
        capture_output=True,
        check=False,
    )
    return [ROUNDS] if probe.returncode == 0 else []


@pytest.mark.parametrize("times", rounds())
def test_a_full_disk_is_a_503_and_once_there_is_room_everything_goes_on(
    tmp_path: Path, times: int
) -> None:
    """The process checks every answer, compares all with the ledger, and verifies it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(disk), str(times)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )

    assert 0 == done.returncode, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert [200] * times == said["alive"]
    assert said["full"]
    assert said["unknown"] >= times
    log = (tmp_path / "service.log").read_text()
    assert "DiskFullError" in log or "DatabaseUnavailable" in log
    assert "web.request_failed" not in log
    assert "credits.operation_failed" not in log
