"""Runs pg_dump, pg_dumpall and pg_restore of a server's own major version.

What they write and read goes through us, so that it is hashed as it passes and so that they end
when we do: a killed tool leaves a closed pipe. Invariants: no argument is a secret; no program
outlives the call that started it.
"""

import asyncio
import os
import re
import signal
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tollkeeper.database.binaries import ClientInstallation, client_installations
from tollkeeper.database.libpq import secrets_of
from tollkeeper.migrate.backup_errors import ProgramFailed, ProgramsMissing
from tollkeeper.migrate.shielding import shielded

CHUNK_BYTES: Final = 1024 * 1024
LOCK_WAIT_S: Final = 30
"""How long a dump waits for a table that somebody alters; everyone who wants it queues behind."""

_LAST_WORDS: Final = 5
_ERROR = re.compile(r"^pg_\w+: (?:error|fatal|detail|hint)\b|\b(?:ERROR|FATAL|PANIC): ")

Hear = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """The programs of one installation, and how they can compress."""

    installation: ClientInstallation
    compression: str

    async def dump(
        self, environment: Mapping[str, str], *, snapshot: str, take: Callable[[bytes], None],
        hear: Hear,
    ) -> None:  # fmt: skip
        """Dump a database as an exported snapshot sees it; the pieces go to `take`.

        Raises:
            ProgramFailed: nothing that was taken is a dump.
        """
        arguments = [
            *("--format=custom", f"--compress={self.compression}", "--no-password", "--verbose"),
            *(f"--snapshot={snapshot}", f"--lock-wait-timeout={LOCK_WAIT_S}s"),
        ]
        # 15 knows levels of gzip only, and has it as its default.
        if self.compression == "gzip":
            arguments.remove("--compress=gzip")
        await self._read_from("pg_dump", arguments, environment, take=take, hear=hear)

    async def dump_globals(
        self, environment: Mapping[str, str], *, take: Callable[[bytes], None]
    ) -> None:
        """Write roles and tablespaces as SQL, without passwords.

        Raises:
            ProgramFailed: the role may not read them.
        """
        arguments = ["--globals-only", "--no-role-passwords", "--no-password"]
        await self._read_from("pg_dumpall", arguments, environment, take=take, hear=_deaf)

    async def read_through(self, pieces: Iterable[bytes]) -> None:
        """Read a dump to its end: every byte is unpacked, nothing is restored.

        Raises:
            ProgramFailed: it cannot be read.
        """
        arguments = ["--file=/dev/null"]
        await self._write_to("pg_restore", arguments, {}, pieces=pieces)

    async def restore(self, environment: Mapping[str, str], *, pieces: Iterable[bytes]) -> None:
        """Restore a dump into an empty database, with its owners and grants.

        Raises:
            ProgramFailed: at the first statement that the server refuses.
        """
        arguments = [
            *("--exit-on-error", "--no-password"),
            f"--dbname=dbname={_quoted(environment['PGDATABASE'])}",
        ]
        await self._write_to("pg_restore", arguments, environment, pieces=pieces)

    async def _read_from(
        self, name: str, arguments: Sequence[str], environment: Mapping[str, str], *,
        take: Callable[[bytes], None], hear: Hear,
    ) -> None:  # fmt: skip
        async with self._running(name, arguments, environment, hear=hear) as process:
            assert process.stdout is not None
            while piece := await process.stdout.read(CHUNK_BYTES):
                take(piece)

    async def _write_to(
        self, name: str, arguments: Sequence[str], environment: Mapping[str, str], *,
        pieces: Iterable[bytes],
    ) -> None:  # fmt: skip
        async with self._running(name, arguments, environment, hear=_deaf) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                for piece in pieces:
                    process.stdin.write(piece)
                    await process.stdin.drain()
                process.stdin.close()
                await process.stdin.wait_closed()
            except (BrokenPipeError, ConnectionResetError):
                pass  # it says why, and ends with an error
            while await process.stdout.read(CHUNK_BYTES):
                pass

    @asynccontextmanager
    async def _running(
        self, name: str, arguments: Sequence[str], environment: Mapping[str, str], *, hear: Hear
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        """Run a program during the block, which is to succeed; kill it if the block fails."""
        words = _LastWords()
        process = await asyncio.create_subprocess_exec(
            self.installation.program(name),
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"LC_ALL": "C", **environment},
            limit=CHUNK_BYTES,
            # Ctrl-C on a terminal is for us, who end it then; not for both at once.
            start_new_session=True,
        )
        listening = asyncio.create_task(_listen(process, words, hear))
        try:
            yield process
            await listening
            status = await process.wait()
        finally:
            await _end(process, listening)
        if status:
            reason = _masked(words.text, secrets_of(environment))
            raise ProgramFailed(program=name, status=status, reason=reason)


async def programs_for(major: int, folders: Iterable[Path]) -> Programs:
    """Return the programs of a major version, from `folders` or wherever they are installed.

    Raises:
        ProgramsMissing: with what there is.
    """
    found = await asyncio.to_thread(client_installations, folders)
    return await _first_of([each for each in found if each.major == major], major, found)


async def programs_to_read(major: int, folders: Iterable[Path]) -> Programs:
    """Return programs that can read a dump of a major version: its own, or else of a newer one.

    Raises:
        ProgramsMissing: with what there is.
    """
    found = await asyncio.to_thread(client_installations, folders)
    able = sorted((each for each in found if each.major >= major), key=lambda each: each.major)
    return await _first_of(able, major, found)


async def _first_of(
    fit: Sequence[ClientInstallation], major: int, found: Sequence[ClientInstallation]
) -> Programs:
    for installation in fit:
        compression = await _compression_of(installation)
        return Programs(installation=installation, compression=compression)
    raise ProgramsMissing(major=major, found=tuple(str(each) for each in found))


async def _compression_of(installation: ClientInstallation) -> str:
    """Return `zstd` where the programs were built with it: tried out, at a server that is none."""
    with tempfile.TemporaryDirectory(prefix="tollkeeper-") as nowhere:
        process = await asyncio.create_subprocess_exec(
            installation.program("pg_dump"),
            "--format=custom",
            "--compress=zstd",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={"LC_ALL": "C", "PGHOST": nowhere},
        )
        _, said = await process.communicate()
    return "gzip" if b"compress" in said else "zstd"


class _LastWords:
    """The last of a program's messages that speak of an error; or, where none does, its last."""

    def __init__(self) -> None:
        self._errors: deque[str] = deque(maxlen=_LAST_WORDS)
        self._last = ""

    def add(self, line: str) -> None:
        self._last = line
        if _ERROR.search(line):
            self._errors.append(line)

    @property
    def text(self) -> str:
        return "; ".join(self._errors) or self._last


async def _listen(process: asyncio.subprocess.Process, words: _LastWords, hear: Hear) -> None:
    """Hand each line of a program's messages on, and keep the last."""
    assert process.stderr is not None
    async for line in _lines(process.stderr):
        words.add(line)
        hear(line)


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    rest = b""
    while piece := await stream.read(CHUNK_BYTES):
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace")
        rest = rest[-CHUNK_BYTES:]
    if rest:
        yield rest.decode(errors="replace")


async def _end(process: asyncio.subprocess.Process, listening: asyncio.Task[None]) -> None:
    """Kill a program that still runs, and whatever it has started; wait until it has ended."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    await shielded(_drained(process, listening))


async def _drained(process: asyncio.subprocess.Process, listening: asyncio.Task[None]) -> None:
    """Wait for the end of a program; what nobody reads any more would keep it from being seen."""
    assert process.stdout is not None
    await asyncio.gather(listening, return_exceptions=True)
    with suppress(OSError):
        while await process.stdout.read(CHUNK_BYTES):
            pass
    await process.wait()


def _quoted(name: str) -> str:
    r"""Return a value for a connection string: a name with `=` in it would be one itself."""
    escaped = name.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _masked(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


def _deaf(_: str) -> None:
    pass


def pieces_of(path: Path) -> Iterator[bytes]:
    """Read a file piece by piece."""
    with path.open("rb") as file:
        while piece := file.read(CHUNK_BYTES):
            yield piece
