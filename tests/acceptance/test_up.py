"""`tollkeeper up` as a person runs it: from nothing, twice, killed, and in the way of others."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import httpx
import pytest

from tollkeeper.database.embedded import EmbeddedServer

DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Up:
    """A running `tollkeeper up`."""

    process: subprocess.Popen[str]
    url: str
    shadow_url: str
    data: Path
    shown: str

    def client(self) -> httpx.Client:
        key = (self.data / "dev.key").read_text().strip()
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {key}"})

    def children(self) -> dict[int, str]:
        """Return the command lines of the processes that it started, by process id."""
        found = {}
        for entry in Path("/proc").iterdir():
            fields = process_fields(int(entry.name)) if entry.name.isdigit() else None
            if fields is not None and fields[0] != "Z" and int(fields[1]) == self.process.pid:
                found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        return found

    def child(self, words: str) -> int:
        """Return the process id of the one child whose command line has these words."""
        return next(pid for pid, command in self.children().items() if words in command)


def process_fields(pid: int) -> list[str] | None:
    """Return what /proc says about a process, from its state on; None if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def is_alive(pid: int) -> bool:
    fields = process_fields(pid)
    return fields is not None and fields[0] != "Z"


def wait_until(claim: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(int(DEADLINE_S / 0.05)):
        if claim():
            return
        pause.wait(0.05)
    pytest.fail("the condition did not come true")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "tollkeeper", "up", *options]


def ports() -> tuple[str, ...]:
    return ("--port", str(free_port()), "--shadow-port", str(free_port()))


def environment(**settings: str) -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith("TOLLKEEPER_")}
    return kept | settings


def refusal(*options: str, **settings: str) -> str:
    """Return what an `up` says that refuses to start."""
    done = subprocess.run(
        command(*options),
        env=environment(**settings),
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr.strip()


@contextmanager
def up(
    data: Path,
    *options: str,
    settings: Mapping[str, str] | None = None,
    shadow_port: int | None = None,
) -> Iterator[Up]:
    port, shadow_port = free_port(), shadow_port or free_port()
    process = subprocess.Popen(
        command(
            "--data", str(data), "--port", str(port), "--shadow-port", str(shadow_port), *options
        ),
        env=environment(**(settings or {})),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    shown = []
    try:
        for line in process.stdout:
            shown.append(line)
            if "Ctrl-C" in line:
                break
        else:
            pytest.fail(f"it ended with {process.wait()}")
        yield Up(
            process=process,
            url=f"http://127.0.0.1:{port}",
            shadow_url=f"http://127.0.0.1:{shadow_port}",
            data=data,
            shown="".join(shown),
        )
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def topped_up(running: Up, amount: int, key: str) -> httpx.Response:
    with running.client() as client:
        client.post("/v1/accounts", json={"account_id": "acme", "tenant_id": "acme"})
        return client.post(
            "/v1/accounts/acme/topups", json={"amount": amount}, headers={"Idempotency-Key": key}
        )


def balance(running: Up) -> int:
    with running.client() as client:
        return int(client.get("/v1/accounts/acme").raise_for_status().json()["balance"])


def answers(running: Up) -> bool:
    try:
        with running.client() as client:
            return client.get("/health/ready").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One that 500 were topped up in, for tests after which it runs as before."""
    with up(tmp_path_factory.mktemp("up")) as running:
        topped_up(running, 500, "first")
        yield running


def test_everything_starts_from_nothing_and_ctrl_c_stops_it(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with up(data) as running:
        key = (data / "dev.key").read_text().strip()
        shown = set(running.shown.replace("/v1", " ").split())
        assert {key, running.url, running.shadow_url, str(data)} <= shown
        assert (data / "dev.key").stat().st_mode & 0o777 == 0o600
        assert (data / "checkpoint.key").stat().st_mode & 0o777 == 0o600
        assert (data / "checkpoint.pub").read_text().startswith("tollkeeper/credits+")
        assert (data / "checkpoints").is_dir()
        assert json.loads((data / "up.json").read_text()) == {
            "url": running.url,
            "shadow_url": running.shadow_url,
            "pid": running.process.pid,
        }
        assert topped_up(running, 500, "first").status_code == 201
        started = running.children()
        assert len(started) == 4
        assert httpx.get(f"{running.shadow_url}/health/ready").status_code == 200

        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(DEADLINE_S) == 0

    assert not any(is_alive(pid) for pid in started)
    assert not (data / "up.json").exists()

    with up(data) as running:
        assert key in running.shown
        assert balance(running) == 500


def test_the_psql_line_reaches_the_ledger(running: Up) -> None:
    line = next(line for line in running.shown.splitlines() if " psql " in line)

    async def found() -> object:
        connection = await asyncpg.connect(line.split("'")[1])
        try:
            return await connection.fetchval("SELECT sum(balance)::bigint FROM accounts")
        finally:
            await connection.close()

    assert asyncio.run(found()) == 500


def test_second_up_on_one_directory_says_who_holds_it(running: Up) -> None:
    said = refusal("--data", str(running.data), *ports())

    assert f"in use by process {running.process.pid} (" in said
    assert running.url in said
    assert answers(running)


def test_a_port_in_use_is_named_and_nothing_is_started(tmp_path: Path) -> None:
    with socket.socket() as other:
        # Also a stranger who would share the port is a stranger.
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]

        said = refusal("--data", str(tmp_path), "--port", str(port))
        shadow = refusal(
            "--data", str(tmp_path), "--port", str(free_port()), "--shadow-port", str(port)
        )

    assert f"Cannot listen on 127.0.0.1:{port}: address already in use." in said
    assert said.endswith("Choose another with --port.")
    assert shadow.endswith("Choose another with --shadow-port.")
    assert not (tmp_path / "postgres").exists()


def test_a_killed_service_is_started_again(running: Up) -> None:
    killed = running.child("serve credits")

    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: not is_alive(killed) and answers(running))

    assert balance(running) == 500


def test_a_killed_database_is_started_again(running: Up) -> None:
    killed = running.child("postgres -D")

    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: any("postgres -D" in text for text in running.children().values()))
    wait_until(lambda: answers(running))

    assert running.child("postgres -D") != killed
    # Reads and writes are let through again each in its own time.
    wait_until(lambda: topped_up(running, 500, "first").status_code == 201)
    replay = topped_up(running, 500, "first")
    assert replay.headers["Idempotent-Replayed"] == "true"
    assert balance(running) == 500


def test_sigkill_leaves_nothing_behind_and_the_next_start_finds_everything(tmp_path: Path) -> None:
    with up(tmp_path) as running:
        topped_up(running, 500, "first")
        started = running.children()

        running.process.kill()
        running.process.wait()
        wait_until(lambda: not any(is_alive(pid) for pid in started))

    asked = subprocess.run(
        [sys.executable, "-m", "tollkeeper", "db", "url", "credits", "--data", str(tmp_path)],
        env=environment(), capture_output=True, text=True, check=False, timeout=DEADLINE_S,
    )  # fmt: skip
    assert (asked.returncode, asked.stdout) == (1, "")
    assert "no database runs in" in asked.stderr
    with up(tmp_path) as running:
        assert balance(running) == 500


def test_processes_share_one_port(tmp_path: Path) -> None:
    with up(tmp_path, "--processes", "2") as running:
        services = [text for text in running.children().values() if "serve credits" in text]

        assert len(services) == 2
        assert topped_up(running, 500, "first").status_code == 201


def test_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    with up(tmp_path) as running:
        started = running.children()
        # A stopped service cannot leave: without the second signal we would wait half a minute.
        os.kill(running.child("serve credits"), signal.SIGSTOP)

        running.process.send_signal(signal.SIGINT)
        wait_until(lambda: len(running.children()) < len(started))
        running.process.send_signal(signal.SIGINT)

        assert running.process.wait(DEADLINE_S) == 130
        wait_until(lambda: not any(is_alive(pid) for pid in started))


def test_configured_databases_are_used_instead_of_the_embedded_one(
    tmp_path: Path, server: EmbeddedServer, empty_dsn: str
) -> None:
    server.create_database("up_access")
    dsns = {"TOLLKEEPER_CREDITS_DSN": empty_dsn, "TOLLKEEPER_ACCESS_DSN": server.dsn("up_access")}

    with (
        socket.create_server(("127.0.0.1", 0)) as other,  # where experiments are not served anyway
        up(tmp_path, settings=dsns, shadow_port=other.getsockname()[1]) as running,
    ):
        assert topped_up(running, 500, "first").status_code == 201
        assert "TOLLKEEPER_SHADOW_DSN is not set" in running.shown
        assert not (tmp_path / "postgres").exists()
        said = refusal("--data", str(tmp_path), *ports(), **dsns)

    assert f"in use by process {running.process.pid} (" in said


def test_half_a_configuration_is_refused(tmp_path: Path) -> None:
    said = refusal("--data", str(tmp_path), TOLLKEEPER_CREDITS_DSN="postgresql://nowhere/x")

    assert "TOLLKEEPER_CREDITS_DSN is set but TOLLKEEPER_ACCESS_DSN is not" in said


def test_more_processes_than_connections_are_refused(tmp_path: Path) -> None:
    said = refusal("--data", str(tmp_path), "--processes", "64")

    assert "64 processes need" in said


def test_a_service_that_cannot_start_is_quoted(tmp_path: Path) -> None:
    said = refusal("--data", str(tmp_path), *ports(), TOLLKEEPER_LOG_LEVEL="loud")

    assert " did not start: The log level must be one of" in said
