"""Keeps programs running: starts them, keeps what they say, starts them again when they end.

It does not know what the programs are; `up` does. Invariants: a program that we started ends with
us, however we end (see `database.launch`); its log is bounded; it is started again after a wait
that grows while it keeps failing, for as long as it is wanted.
"""

import asyncio
import signal
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tollkeeper.database.launch import launch_command
from tollkeeper.kernel.backoff import Backoff
from tollkeeper.kernel.clock import Clock

LOG_LIMIT_BYTES = 8 * 1024 * 1024
"""A log and the one older part beside it are never larger than this each."""

STEADY_S = 30.0
"""Who ran this long did not fail at starting: the next wait is short again."""

RESTART_BACKOFF = Backoff(first_ms=200.0, ceiling_ms=10_000.0, retries=0)
"""Waits before a restart; there is no last one."""

_READ_BYTES = 65_536

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What to run."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path


class BoundedLog:
    """A file that is put aside when it gets too large; one older part is kept."""

    def __init__(self, path: Path, *, limit_bytes: int = LOG_LIMIT_BYTES) -> None:
        self._path = path
        self._limit_bytes = limit_bytes
        self._file: BinaryIO = path.open("ab", buffering=0)
        self._size_bytes = self._file.tell()
        self.last_line = ""

    def write(self, said: bytes) -> None:
        """Append; a full disk loses what was said, never the program that said it."""
        lines = said.decode(errors="replace").strip().splitlines()
        self.last_line = lines[-1] if lines else self.last_line
        with suppress(OSError):
            if self._size_bytes + len(said) > self._limit_bytes:
                self._put_aside()
            self._size_bytes += self._file.write(said)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _put_aside(self) -> None:
        self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        self._file.close()
        self._file = self._path.open("ab", buffering=0)
        self._size_bytes = 0


class Supervised:
    """One program that is kept running until `stop`."""

    def __init__(self, program: Program, *, clock: Clock, say: Say) -> None:
        self._program = program
        self._clock = clock
        self._say = say
        self._log = BoundedLog(program.log)
        self._process: Process | None = None
        self._leaving = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.failures = 0
        """How often in a row it ended soon after its start."""

    @property
    def name(self) -> str:
        """The program's name."""
        return self._program.name

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    @property
    def last_words(self) -> str:
        """The last line it said."""
        return self._log.last_line

    def start(self) -> None:
        """Start the program and keep it running from now on."""
        self._task = asyncio.create_task(self._keep_running(), name=f"supervise {self.name}")

    async def stop(self, *, timeout_s: float) -> None:
        """Ask the program to leave, wait until it has, and end it after `timeout_s`."""
        self._leaving.set()
        if self._task is not None:
            self._signal(signal.SIGTERM)
            await asyncio.wait([self._task], timeout=timeout_s)
            self.kill()
            await asyncio.wait([self._task])
        self._log.close()

    def kill(self) -> None:
        """End the program at once."""
        self._leaving.set()
        self._signal(signal.SIGKILL)

    async def _keep_running(self) -> None:
        while not self._leaving.is_set():
            started_s = self._clock.monotonic_s()
            ending = await self._run_once()
            if self._leaving.is_set():
                return
            if self._clock.monotonic_s() - started_s > STEADY_S:
                self.failures = 0
            wait_s = RESTART_BACKOFF.wait_ms(min(self.failures, 16), 0.0) / 1_000
            self.failures += 1
            self._say(f"{self.name} {ending}; starting it again")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), wait_s)

    async def _run_once(self) -> str:
        """Run the program to its end and say how it ended."""
        try:
            # From the event loop's thread, which lives as long as we do: the kernel's death
            # signal is tied to the starting thread.
            process = await asyncio.create_subprocess_exec(
                *launch_command(self._program.command, death_signal=signal.SIGKILL),
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=STDOUT,
                env=self._program.environment,
                # Ctrl-C in the terminal is ours to handle: services leave before the database.
                start_new_session=True,
            )
        except OSError as error:
            return f"could not be started ({error})"
        self._process = process
        if self._leaving.is_set():
            self._signal(signal.SIGTERM)
        assert process.stdout is not None
        while said := await process.stdout.read(_READ_BYTES):
            self._log.write(said)
        code = await process.wait()
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"

    def _signal(self, number: signal.Signals) -> None:
        process = self._process
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.send_signal(number)
