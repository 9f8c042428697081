"""`tollkeeper demo` from nothing, and the other commands beside it while it stays up."""

import asyncio
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
from tests.acceptance.conftest import clean_environment, free_port, tollkeeper


@pytest.fixture
def data() -> Iterator[Path]:
    """A directory whose path is short enough for a socket, unlike pytest's."""
    with tempfile.TemporaryDirectory(prefix="tollkeeper-demo-") as folder:
        yield Path(folder) / "data"


def test_the_demo_ends_with_every_unit_accounted_for_and_a_variant_proven(data: Path) -> None:
    shown = tollkeeper(
        "demo", "--exit", "--requests", "2000", "--data", str(data), "--port", str(free_port()),
        "--shadow-port", str(free_port()), "--json",
    )  # fmt: skip
    report = shown.json()
    audit = report["audit"]
    refused = report["refused"]

    assert shown.code == 0, shown.err
    assert report["requests"] == 2000
    assert isinstance(audit, dict)
    assert audit["conserved"] is True
    assert audit["faults"] == []
    assert audit["consumed"] == report["charged_units"]
    assert isinstance(refused, dict)
    assert list(refused) == ["insufficient-credits"]
    assert report["replayed"] != 0
    experiment = report["experiment"]
    assert isinstance(experiment, dict)
    assert ("deploy", True, []) == (
        experiment["verdict"], experiment["recomputed_identical"], experiment["differences"],
    )  # fmt: skip
    assert 2_000 < experiment["units"] < 10_000
    assert experiment["probability_best"] > 0.95


def test_it_stays_up_for_the_other_commands_until_ctrl_c(data: Path, tmp_path: Path) -> None:
    screen = tmp_path / "screen"
    with screen.open("wb") as output:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "tollkeeper", "demo", "--requests", "200",
                "--data", str(data), "--port", str(free_port()),
                "--shadow-port", str(free_port()),
            ],
            env=clean_environment({}),
            stdout=output,
            stderr=output,
        )  # fmt: skip
    try:
        shown = wait_for(screen, process, "until Ctrl-C")
        here = {"TOLLKEEPER_DATA": str(data)}
        dsn = tollkeeper("db", "url", "credits", environment=here)
        verified = tollkeeper("credits", "verify", "--json", environment=here)

        assert (data / "dev.key").read_text().strip() in shown
        assert "conservation  balances" in shown
        assert "recomputed      identical, bit for bit" in shown
        assert verified.code == 0
        assert asyncio.run(count_accounts(dsn.out.strip())) == verified.json()["accounts"] == 200
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0


def wait_for(screen: Path, process: subprocess.Popen[bytes], words: str) -> str:
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s and process.poll() is None:
        if words in (shown := screen.read_text()):
            return shown
        time.sleep(0.1)
    raise AssertionError(screen.read_text())


async def count_accounts(dsn: str) -> int:
    connection = await asyncpg.connect(dsn)
    try:
        return int(await connection.fetchval("SELECT count(*) FROM accounts"))
    finally:
        await connection.close()
