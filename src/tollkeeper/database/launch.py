"""Starts a program that ends when we end, in its own session and, for root, as another user.

Two sides in one file. The parent calls `launch_command` and starts the command it returns; that is
this file, run by path in an isolated interpreter, which arranges the process and then becomes the
program. It is a program of its own because the system calls it needs are not safe between `fork`
and `exec` in a process with threads. It imports the standard library only.

Invariants:
- On Linux the program gets `death_signal` when the *thread* that started it ends, and so when the
  whole process is killed: start it from a thread that lives as long as the program should.
- A program that is to run as another user gets a capability to pass folders that only root may
  enter if, and only if, it could not reach one of its paths without; never the root user's id.
"""

import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

try:
    import ctypes
except ImportError:  # an interpreter built without libffi
    HAS_CTYPES = False
else:
    HAS_CTYPES = True

LAUNCH_FAILED = 126
"""Exit status when the program could not be started; the reason is the last line on stderr."""

CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2
CAP_SETPCAP = 8
"""Numbers from linux/capability.h; those below with `_PR_` from linux/prctl.h."""

_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_SET_SECUREBITS = 28
_SECBIT_NO_SETUID_FIXUP = 1 << 2
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAPABILITY_VERSION_3 = 0x20080522


class _SystemCalls(Protocol):
    """The two calls of the C library that Python does not offer."""

    def prctl(self, option: int, /, *values: int) -> int: ...

    def capset(self, header: object, data: object, /) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The operating system's user a program runs as."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """What the parent asks of the launched interpreter."""

    parent: int
    death_signal: int
    command: tuple[str, ...]
    account: Account | None
    reach: tuple[str, ...]


def launch_command(
    command: Sequence[str],
    *,
    death_signal: signal.Signals,
    account: Account | None = None,
    reach: Sequence[str] = (),
) -> list[str]:
    """Return the command line that starts `command` (absolute path first) tied to our life.

    `reach` names the paths that `account` must be able to enter or execute.
    """
    order = _Order(
        parent=os.getpid(),
        death_signal=int(death_signal),
        command=tuple(command),
        account=account,
        reach=(command[0], *reach),
    )
    return [sys.executable, "-I", "-S", __file__, json.dumps(asdict(order))]


def _read_order(text: str) -> _Order:
    fields = json.loads(text)
    account = fields["account"]
    return _Order(
        parent=fields["parent"],
        death_signal=fields["death_signal"],
        command=tuple(fields["command"]),
        account=None if account is None else Account(**account),
        reach=tuple(fields["reach"]),
    )


def _become(order: _Order) -> None:
    """Turn this process into the program; returns only if nobody is left to run it for."""
    calls = _system_calls()
    permitted = 0
    must_pass_closed_folders = False
    # A shell that starts us in the background has its children ignore SIGINT.
    if order.death_signal != signal.SIGKILL:
        signal.signal(order.death_signal, signal.SIG_DFL)
    if order.account is not None and os.geteuid() == 0:
        # Everything is read before the drop: this interpreter's own files may be root's only.
        permitted = _permitted_capabilities() if calls is not None else 0
        os.chdir("/")  # that user may not be able to name, or enter, where we are
        _drop_root(order.account, calls)
        must_pass_closed_folders = not all(os.access(path, os.X_OK) for path in order.reach)
    # After the drop, because a change of user clears it.
    if calls is not None:
        calls.prctl(_PR_SET_PDEATHSIG, order.death_signal, 0, 0, 0)
    if os.getppid() != order.parent:
        return
    if must_pass_closed_folders and calls is not None:
        _execute_with_capability(order.command, permitted, calls)
    os.execv(order.command[0], order.command)  # noqa: S606  # a shell would be in the way


def _system_calls() -> _SystemCalls | None:
    if sys.platform != "linux" or not HAS_CTYPES:
        return None
    library: _SystemCalls = ctypes.CDLL(None, use_errno=True)
    return library


def _permitted_capabilities() -> int:
    """Return the capabilities this process may use or pass on, as a set of bits."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line[7:], 16) for line in status.splitlines() if line[:7] == "CapPrm:")


def _drop_root(account: Account, calls: _SystemCalls | None) -> None:
    if calls is not None:
        calls.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.initgroups(account.name, account.gid)
    os.setgid(account.gid)
    os.setuid(account.uid)


def _execute_with_capability(command: tuple[str, ...], permitted: int, calls: _SystemCalls) -> None:
    """Become the program with the weakest capability that can reach it; return if none can.

    Reading and searching suffices for folders closed to others; overriding is needed where the
    program's own file is not executable for others, and in containers that know only that one.
    """
    if permitted >> CAP_SETPCAP & 1:
        # Without this bit `access(2)`, which the programs ask about themselves, ignores
        # capabilities (capabilities(7), SECBIT_NO_SETUID_FIXUP).
        _set_capabilities(calls, effective=1 << CAP_SETPCAP, permitted=permitted)
        calls.prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
    for capability in (CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE):
        if not permitted >> capability & 1:
            continue
        # What may be tried next stays permitted; exec drops whatever is not ambient.
        wanted = 1 << capability
        _set_capabilities(calls, effective=wanted, permitted=permitted, inheritable=wanted)
        calls.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0)
        with suppress(PermissionError):
            os.execv(command[0], command)  # noqa: S606  # a shell would be in the way
    _set_capabilities(calls, effective=0, permitted=0)


def _set_capabilities(
    calls: _SystemCalls, *, effective: int, permitted: int, inheritable: int = 0
) -> None:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (effective, permitted, inheritable)
    low = tuple(each & 0xFFFF_FFFF for each in sets)
    high = tuple(each >> 32 for each in sets)
    if calls.capset(header, (ctypes.c_uint32 * 6)(*low, *high)):
        raise OSError(ctypes.get_errno(), "the kernel refused to set capabilities")


def _main() -> int:
    order = _read_order(sys.argv[1])
    try:
        _become(order)
    except OSError as error:
        as_user = f" as user {order.account.name}" if order.account else ""
        sys.stderr.write(f"cannot start {order.command[0]}{as_user}: {error}\n")
    return LAUNCH_FAILED


if __name__ == "__main__":
    sys.exit(_main())
