"""The files of the embedded server: created whole or not at all, owned by whom the server runs as.

A cluster is made under a temporary name and renamed when it is complete, so that a killed `initdb`
leaves nothing that looks like data.
"""

import errno
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tollkeeper.database.binaries import Installation
from tollkeeper.database.errors import EmbeddedError
from tollkeeper.database.launch import Account, launch_command

SUPERUSER = "tollkeeper"

_SERVICE_ACCOUNTS = ("postgres", "nobody")
"""Whom the server runs as when root starts it: PostgreSQL refuses root."""

_UNFINISHED = "postgres.new-"
_ROOT = 0


def server_environment() -> dict[str, str]:
    """Return the environment for PostgreSQL's programs: nothing that would redirect them."""
    kept = {name: value for name, value in os.environ.items() if not _is_foreign(name)}
    return kept | {"LC_ALL": "C", "TZ": "UTC"}


def _is_foreign(name: str) -> bool:
    return name.startswith(("PG", "LC_", "LANG", "TOLLKEEPER_"))


def choose_account(data: Path) -> Account | None:
    """Return whom the server must run as; None means as we are.

    Raises:
        EmbeddedError: the data belong to somebody else, or root has nobody to hand the server to.
    """
    owner = data.stat().st_uid if data.exists() else None
    if os.geteuid() != _ROOT:
        if owner not in {None, os.geteuid()}:
            raise EmbeddedError(
                problem=f"The data in {data} belong to user {_name_of(owner)}, not to "
                f"{_name_of(os.geteuid())}: start as that user, or name another directory."
            )
        return None
    if owner not in {None, _ROOT}:
        return _account(pwd.getpwuid(owner)) if owner in _known_users() else _nameless(data)
    for name in _SERVICE_ACCOUNTS:
        try:
            return _account(pwd.getpwnam(name))
        except KeyError:
            continue
    raise EmbeddedError(
        problem="PostgreSQL does not run as root, and there is neither a user 'postgres' nor "
        "'nobody' to run it as: start as an ordinary user."
    )


def _account(entry: pwd.struct_passwd) -> Account:
    return Account(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid)


def _known_users() -> set[int]:
    return {entry.pw_uid for entry in pwd.getpwall()}


def _nameless(data: Path) -> Account:
    status = data.stat()
    return Account(name="nobody", uid=status.st_uid, gid=status.st_gid)


def _name_of(uid: int | None) -> str:
    try:
        return "nobody" if uid is None else pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def check_cluster(data: Path, installation: Installation) -> bool:
    """Whether a cluster exists that this PostgreSQL can run.

    Raises:
        EmbeddedError: what is there is another version's, or no cluster.
    """
    if not data.exists():
        return False
    version = data / "PG_VERSION"
    if not version.exists():
        raise EmbeddedError(
            problem=f"{data} exists but holds no PostgreSQL data: "
            "move it away, or name another directory."
        )
    found = version.read_text(encoding="utf-8").strip()
    if found != str(installation.major):
        raise EmbeddedError(
            problem=f"The data in {data} were written by PostgreSQL {found}, but the programs in "
            f"{installation.directory} are PostgreSQL {installation.major}: use those of {found}, "
            "or dump the data and load them into a new directory."
        )
    return True


def create_cluster(
    data: Path, installation: Installation, *, account: Account | None, log: Path
) -> None:
    """Make a new cluster at `data`, which must not exist.

    Raises:
        EmbeddedError: `initdb` failed; its words are in the error and in the log.
        OSError: the directory cannot be made.
    """
    for unfinished in data.parent.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    unfinished = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=data.parent))
    try:
        give_to(unfinished, account)
        said = _run_initdb(unfinished, installation, account=account)
        if said is not None:
            with log.open("a", encoding="utf-8") as file:
                file.write(said)
            raise explain(said, data.parent)
        unfinished.rename(data)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _run_initdb(target: Path, installation: Installation, *, account: Account | None) -> str | None:
    """Run `initdb`; return what it said if it failed."""
    # C.UTF-8 sorts by code point everywhere; before 17 only the C library could offer it, or not.
    builtin = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    command = [
        installation.program("initdb"),
        f"--pgdata={target}",
        f"--username={SUPERUSER}",
        # Whoever can open the socket, in a folder closed to others, is the owner.
        "--auth=trust",
        "--encoding=UTF8",
        "--locale=C",
        *(builtin if installation.major >= 17 else []),
        "--data-checksums",
        "--no-instructions",
    ]
    done = subprocess.run(  # noqa: S603  # a command line of our own making
        launch_command(command, death_signal=signal.SIGKILL, account=account, reach=[str(target)]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=server_environment(),
        start_new_session=True,
        check=False,
    )
    return done.stdout.decode(errors="replace") if done.returncode else None


def give_to(path: Path, account: Account | None) -> None:
    """Make a folder the server's own, closed to everyone else."""
    path.chmod(0o700)
    if account is None or path.stat().st_uid == account.uid:
        return
    for folder, _, files in os.walk(path):
        for each in (folder, *(os.path.join(folder, name) for name in files)):  # noqa: PTH118
            os.chown(each, account.uid, account.gid, follow_symlinks=False)


_GRAVE = re.compile(r"FATAL|PANIC|ERROR|error:|could not|cannot")
_SEVERITY = re.compile(r"^.*?(?:FATAL|PANIC|ERROR|error):\s+")

_EXPLANATIONS: Mapping[str, str] = {
    "shared memory": "PostgreSQL did not get the shared memory it needs",
    "No space left on device": "The disk that holds {place} is full",
    "Disk quota exceeded": "The disk quota for {place} is used up",
    "File too large": "A limit on the size of files (ulimit -f) stops PostgreSQL in {place}",
    "Read-only file system": "{place} is on a read-only file system",
    "Permission denied": "PostgreSQL may not use its files for {place}",
    "Operation not permitted": "PostgreSQL may not be started for {place} with the rights we have",
}


def explain(said: str, place: Path) -> EmbeddedError:
    """Turn what a PostgreSQL program said when it failed into one sentence."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    grave = [line for line in lines if _GRAVE.search(line)] or lines or ["it gave no reason"]
    for sign, problem in _EXPLANATIONS.items():
        for line in grave:
            if sign in line:
                return EmbeddedError(problem=f"{problem.format(place=place)}: {_plain(line)}.")
    return EmbeddedError(
        problem=f"PostgreSQL did not start: {_plain(grave[-1])}; "
        f"{place / 'postgres.log'} says more."
    )


def explain_refusal(error: OSError, place: Path) -> EmbeddedError:
    """Turn what the operating system refused us into one sentence."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            problem = f"The disk that holds {place} is full."
        case errno.EROFS:
            problem = f"{place} is on a read-only file system."
        case errno.EACCES | errno.EPERM:
            problem = f"User {_name_of(os.geteuid())} may not write to {place}."
        case errno.ENOTDIR | errno.EEXIST:
            problem = f"{place} is not a directory."
        case _:
            problem = f"The data directory {place} cannot be used: {error.strerror or error}."
    return EmbeddedError(problem=problem)


def _plain(line: str) -> str:
    """Return a line without time, process, program and severity."""
    return _SEVERITY.sub("", line).strip().rstrip(".")
