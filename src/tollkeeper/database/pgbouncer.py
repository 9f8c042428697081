"""A connection through PgBouncer in transaction mode, where a session is nobody's own.

PgBouncer lends a server's connection for one unit of work and then gives it to somebody else. So:
- every statement runs inside a unit of work; one that is given outside of any gets its own;
- BEGIN brings role and settings along in the same message, for this unit of work only;
- no statement has a name on the server: it would collide there with that of another process.
This holds for what `driver.Connection` has. What a session would keep (its locks, `SET`, `LISTEN`,
prepared statements) is not to be had. A statement outside of a unit of work costs two round trips
more than on a direct connection.
"""
# ruff: noqa: A002, ASYNC109, D102 - the signatures and their documentation are asyncpg's

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeGuard

import asyncpg

from tollkeeper.database.driver import Connection, Row

ROLLBACK_TIMEOUT_S = 2.0
"""For giving up a unit of work after an error; who does not answer then is not asked again."""


class PooledConnection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """An asyncpg connection that keeps nothing between two units of work; see the module."""

    _top_xact: object
    _server_caps: Any

    def __init__(self, *parts: object) -> None:
        super().__init__(*parts)
        self._opening = ""
        self._is_left_open = False
        # The driver switches `jit` off in the session while it looks up types, and then on again:
        # after ours was local that would leave it off for others. `bring` switches it off.
        self._server_caps = self._server_caps._replace(jit=False)

    def bring(self, *, role: str | None, settings: Mapping[str, str]) -> None:
        """Have every unit of work act as `role` and under `settings`."""
        commands = [] if role is None else [f"SET LOCAL ROLE {_quoted(role)};"]
        for name, value in {"jit": "off", **settings}.items():
            commands.append(f"SET LOCAL {_quoted(name)} TO {_literal(value)};")
        self._opening = " ".join(commands)

    async def execute(self, query: str, *args: object, timeout: float | None = None) -> str:
        self._check_open()
        if self._top_xact is not None and not self.is_in_transaction():
            return await self._begin_driver_s(query, timeout)
        async with self._unit_of_work(timeout):
            status: str = await super().execute(query, *args, timeout=timeout)
            return status

    async def executemany(
        self, command: str, args: Iterable[Sequence[object]], *, timeout: float | None = None
    ) -> None:
        async with self._unit_of_work(timeout):
            await super().executemany(command, args, timeout=timeout)

    async def fetch(self, query: str, *args: object, timeout: float | None = None) -> Sequence[Row]:
        async with self._unit_of_work(timeout):
            rows: Sequence[Row] = await super().fetch(query, *args, timeout=timeout)
            return rows

    async def fetchrow(self, query: str, *args: object, timeout: float | None = None) -> Row | None:
        async with self._unit_of_work(timeout):
            row: Row | None = await super().fetchrow(query, *args, timeout=timeout)
            return row

    async def fetchval(
        self, query: str, *args: object, column: int = 0, timeout: float | None = None
    ) -> Any:
        async with self._unit_of_work(timeout):
            return await super().fetchval(query, *args, column=column, timeout=timeout)

    async def copy_from_query(
        self,
        query: str,
        *args: object,
        output: Callable[[bytes], Awaitable[None]],
        format: str,
        timeout: float | None = None,
    ) -> str:
        async with self._unit_of_work(timeout):
            status: str = await super().copy_from_query(
                query, *args, output=output, format=format, timeout=timeout
            )
            return status

    async def prepare(self, query: str, **options: Any) -> Any:
        if not self.is_in_transaction():
            raise asyncpg.InterfaceError(
                "through PgBouncer a statement cannot be prepared outside of a unit of work"
            )
        return await super().prepare(query, **options)

    async def _get_statement(self, query: str, timeout: float | None, **options: Any) -> Any:
        # Cursors ask for a name. An open portal keeps its plan when the statement is replaced.
        return await super()._get_statement(query, timeout, **{**options, "named": False})

    @contextlib.asynccontextmanager
    async def _unit_of_work(self, timeout: float | None) -> AsyncIterator[None]:
        """Be inside of a unit of work: the one that is open, or else one of its own."""
        self._check_open()
        if self._is_left_open:
            raise asyncpg.InterfaceError("a unit of work was left open: close the connection")
        if self.is_in_transaction():
            yield
            return
        try:
            await super().execute(f"BEGIN; {self._opening}", timeout=timeout)
            yield
            await super().execute("COMMIT;", timeout=timeout)
        except (TimeoutError, asyncio.CancelledError):
            # The statement may still run. Who is cancelled, or out of time, does not wait for its
            # end; whoever lent the connection closes it, as after a lone statement anywhere.
            self._is_left_open = True
            raise
        except Exception:
            await self._give_up()
            raise

    async def _begin_driver_s(self, begin: str, timeout: float | None) -> str:
        """Send the BEGIN of the driver's own unit of work, and with it what we bring."""
        try:
            status: str = await super().execute(f"{begin} {self._opening}", timeout=timeout)
        except asyncpg.PostgresError:
            self._top_xact = None  # the driver forgets to
            await self._give_up()
            raise
        return status

    async def _give_up(self) -> None:
        """Roll back what is open; never raises an error of its own."""
        if self.is_closed() or not self.is_in_transaction():
            return
        try:
            await super().execute("ROLLBACK;", timeout=ROLLBACK_TIMEOUT_S)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self._is_left_open = True


def is_pooled(connection: Connection) -> TypeGuard[PooledConnection]:
    """Say whether a connection keeps no session."""
    # Not `isinstance`: for asyncpg's classes that says yes to each of its connections.
    return issubclass(type(connection), PooledConnection)


def _quoted(name: str) -> str:
    return f'"{_plain(name)}"'


def _literal(value: str) -> str:
    return f"'{_plain(value)}'"


def _plain(text: str) -> str:
    """Return a name or value of our own, of which none needs an escape."""
    if not text.isprintable() or {"'", '"', "\\"} & set(text):
        raise ValueError("a role or setting with a character that has a meaning in SQL")
    return text
