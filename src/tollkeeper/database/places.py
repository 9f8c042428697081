"""Where the pools of a database connect, and what is known of the hosts they are connected to.

No I/O. Invariants:
- pools connect to their home and nowhere else: a host that would take writes is not the right one
  because the right one does not answer for a moment;
- the home of writes changes only to a better primary; that of reads follows it, or leaves for a
  standby when no primary was found three times in a row;
- an answer counts for the host that gave it; for writes only what has written counts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

from tollkeeper.database.driver import Connection
from tollkeeper.database.dsn import Host
from tollkeeper.database.roles import READABLE, Choice, HostCheck, choose
from tollkeeper.database.status import Access, HostState

PATIENCE = 3
"""Rounds in a row without a primary, before reads go to a standby."""

_WRITING = ("WITH", "INSERT", "UPDATE", "DELETE")
"""Beginnings of statements that, outside of a unit of work, have written when they are answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """The pools of an access connect somewhere else from now on."""

    access: Access
    former: Host | None
    present: Host
    is_former_silent: bool
    """The former home does not answer: what waits for it would wait for ever."""


class Places:
    """The hosts of one DSN as its pools use them."""

    def __init__(self, hosts: Sequence[Host], *, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._only = hosts[0] if len(hosts) == 1 else None
        self._homes: dict[Access, Host] = {}
        self._checks: dict[Host, HostCheck] = {}
        self._rounds_without_primary = 0
        self._leads: WeakKeyDictionary[Connection, Host] = WeakKeyDictionary()
        self._units: WeakKeyDictionary[Connection, bool] = WeakKeyDictionary()
        """Connections inside a unit of work, and whether it may write."""
        self._answered_s: dict[tuple[Host, bool], float] = {}
        self._served_s = dict.fromkeys(Access, 0.0)
        self.choice = Choice()
        """What the last round of checks found."""

    def home(self, access: Access) -> Host | None:
        """Return where pools connect; None before it is known."""
        return self._only or self._homes.get(access)

    def note_connected(self, connection: Connection, host: Host) -> None:
        """Remember where a connection leads."""
        self._leads[connection] = host

    def note_answer(self, connection: Connection, access: Access, statement: str) -> None:
        """Take note of a statement that succeeded."""
        now_s = self._now_s()
        has_written = self._has_written(connection, statement) and access is Access.WRITE
        if access is Access.READ or has_written:
            self._served_s[access] = now_s
        host = self._leads.get(connection)
        if host is not None:
            self._answered_s[host, False] = now_s
            if has_written:
                self._answered_s[host, True] = now_s

    def _has_written(self, connection: Connection, statement: str) -> bool:
        """Say whether an answered statement proves a write: inside a unit only its COMMIT does."""
        if statement.startswith("BEGIN"):
            self._units[connection] = "READ ONLY" not in statement
            return False
        if statement.startswith(("COMMIT", "ROLLBACK;")):
            return self._units.pop(connection, False) and statement.startswith("COMMIT")
        return connection not in self._units and statement.startswith(_WRITING)

    def served_s(self, access: Access) -> float:
        """Return when a pool last did what it is for: read, or written."""
        return self._served_s[access]

    def answered_s(self, host: Host, *, writes: bool) -> float:
        """Return when a host last answered a statement, or finished a write."""
        return self._answered_s.get((host, writes), 0.0)

    def says_read_only(self) -> bool:
        """Say whether the host that is written to said itself that it takes no writes.

        Before there is one: whether all hosts said so.
        """
        home = self.home(Access.WRITE)
        asked = [check for host, check in self._checks.items() if home in {None, host}]
        return bool(asked) and all(check.says_read_only for check in asked)

    def judge(self, checks: Sequence[HostCheck]) -> tuple[Move, ...]:
        """Draw from a round of checks where to connect; return what changes."""
        self._checks = {check.host: check for check in checks}
        choice = choose(checks, self.choice)
        missing = choice.writes is None
        self._rounds_without_primary = self._rounds_without_primary + 1 if missing else 0
        home = self.home(Access.READ)
        is_readable = home is None or self._checks[home].state in READABLE
        if missing and not is_readable and self._rounds_without_primary < PATIENCE:
            choice = replace(choice, reads=None)  # it may be a moment only
        self.choice = choice
        found = ((Access.WRITE, choice.writes), (Access.READ, choice.reads))
        return tuple(
            self._move(access, host)
            for access, host in found
            if host is not None and host != self._homes.get(access)
        )

    def _move(self, access: Access, present: Host) -> Move:
        former = self._homes.get(access)
        self._homes[access] = present
        silent = {HostState.OFFLINE, HostState.UNKNOWN}
        return Move(
            access=access,
            former=former,
            present=present,
            is_former_silent=former is not None and self._checks[former].state in silent,
        )
