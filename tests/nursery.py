"""Processes of Python that need not start: forked from one that has imported everything before.

Importing is most of what a short process does, and all of what a service does until it is ready.
A process from here has an environment, a working directory, arguments and files of its own, runs
its program as `python -m NAME` or `python -c CODE` would, and ends as it does. What is tested about
a start itself does not use this.

The nursery is a process of ours that ends when we do. For each program it forks a guardian, which
forks the program, says its process id, waits for it, and says how it ended.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Protocol

ROOT = Path(__file__).parents[1]
ORDER_LIMIT_BYTES = 1 << 20
START = "from tests.nursery import tend; tend()"
"""Nothing is on the stack below a program but this."""

IMPORTED = (
    "tollkeeper.app",
    "tollkeeper.cli",
    "tollkeeper.experiments",
    "tollkeeper.worker",
    "typer.rich_utils",
    "uvicorn.main",
)
"""What programs would import."""

_NUMBER = struct.Struct("!i")
_FILES = 4


class Program(Protocol):
    """A running program: what tests use of `subprocess.Popen`."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


class Forked:
    """A program that was forked from the nursery."""

    def __init__(self, pid: int, guardian: socket.socket, arguments: Sequence[str]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._guardian = guardian
        self._arguments = arguments

    def poll(self) -> int | None:
        """Return how it ended; None while it runs."""
        try:
            return self.wait(timeout=0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Return how it ended: a status, or minus the number of a signal."""
        if self.returncode is None:
            self._guardian.settimeout(timeout)
            try:
                said = self._guardian.recv(_NUMBER.size)
            except (TimeoutError, BlockingIOError):
                assert timeout is not None
                raise subprocess.TimeoutExpired(self._arguments, timeout) from None
            self._guardian.close()
            (self.returncode,) = _NUMBER.unpack(said)
        return self.returncode

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def start(
    *arguments: str,
    environment: Mapping[str, str],
    stdout: IO[bytes] | None = None,
    stderr: IO[bytes] | None = None,
) -> Program:
    """Start `python ARGUMENTS`, which are `-m NAME ...` or `-c CODE ...`; None is our own file.

    An interpreter that is to be another than ours, with other modules, is started anew.
    """
    if _steering(environment) != _steering(os.environ):
        return subprocess.Popen(
            [sys.executable, *arguments], env=environment, stdout=stdout, stderr=stderr,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    order = {"arguments": arguments, "environment": dict(environment), "folder": str(Path.cwd())}
    text = json.dumps(order).encode()
    assert len(text) < ORDER_LIMIT_BYTES
    ours, theirs = socket.socketpair()
    with theirs, Path(os.devnull).open("rb") as nothing:
        files = [nothing.fileno(), *(_number(stdout, 1), _number(stderr, 2)), theirs.fileno()]
        nursery = _nursery()
        socket.send_fds(nursery, [_NUMBER.pack(len(text))], files)
        nursery.sendall(text)
    (pid,) = _NUMBER.unpack(ours.recv(_NUMBER.size, socket.MSG_WAITALL))
    return Forked(pid, ours, arguments)


def _steering(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in environment.items() if name.startswith("PYTHON")}


def _number(file: IO[bytes] | None, usual: int) -> int:
    return usual if file is None else file.fileno()


@cache
def _nursery() -> socket.socket:
    """Start the nursery, and return how to order from it; closing that ends it."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", START, str(theirs.fileno())],
            cwd=ROOT,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
    process.returncode = 0  # it is never waited for: nobody is to warn that it still runs
    atexit.register(ours.close)
    return ours


def tend() -> None:
    """Be the nursery until it is not needed, or the program in a fork of it."""
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # else who ends looks through all of it once more
    orders = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who ordered
    while head := socket.recv_fds(orders, _NUMBER.size, _FILES):
        said, files, _, _ = head
        if not said:
            return
        (size,) = _NUMBER.unpack(said)
        order = json.loads(orders.recv(size, socket.MSG_WAITALL))
        if not os.fork():
            orders.close()
            _guard(order, files)
            return
        for file in files:
            os.close(file)
        while _has_buried():
            pass


def _has_buried() -> bool:
    """Whether there was a guardian that has ended."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


def _guard(order: Mapping[str, object], files: Sequence[int]) -> None:
    """Start a program and wait for it; in its own process this returns when it has ended."""
    *standard, saying = files
    pid = os.fork()
    if not pid:
        os.close(saying)
        _run(order, standard)
        return
    for file in standard:
        os.close(file)
    os.write(saying, _NUMBER.pack(pid))
    _, status = os.waitpid(pid, 0)
    try:
        os.write(saying, _NUMBER.pack(os.waitstatus_to_exitcode(status)))
    finally:  # who ordered may be gone
        os._exit(0)


def _run(order: Mapping[str, object], standard: Sequence[int]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, file in enumerate(standard):
        os.dup2(file, number)
        os.close(file)
    folder, arguments, environment = order["folder"], order["arguments"], order["environment"]
    assert isinstance(folder, str)
    assert isinstance(arguments, list)
    assert isinstance(environment, dict)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    kind, what, *rest = arguments
    sys.argv = [kind, *rest]
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
