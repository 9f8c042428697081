"""The part of asyncpg's interface that Tollkeeper uses, written down because asyncpg has no types.

Not a wrapper: at run time these are asyncpg's own objects; what each method does is said there.
A column's type is known by its query and checked by the tests, not by the compiler, so the values
of a row are the one place where `Any` enters.
"""
# ruff: noqa: A002, ASYNC109, D102 - the signatures and their documentation are asyncpg's

from collections.abc import (
    AsyncIterable,
    Awaitable,
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Sequence,
)
from types import TracebackType
from typing import Any, Protocol


class Row(Protocol):
    """One row, as asyncpg's `Record`: by column name or position; iteration gives the values."""

    def __getitem__(self, key: str | int, /) -> Any: ...
    def __iter__(self) -> Iterator[Any]: ...
    def __len__(self) -> int: ...
    def keys(self) -> KeysView[str]: ...
    def items(self) -> ItemsView[str, Any]: ...


class ServerVersion(Protocol):
    """What a server says it is: 16.2 has major 16 and micro 2."""

    @property
    def major(self) -> int: ...
    @property
    def micro(self) -> int: ...


class UnitOfWork(Protocol):
    """A database transaction as a context: commits at the end, rolls back on any exception."""

    async def __aenter__(self) -> None: ...
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...


class LoggedQuery(Protocol):
    """A statement that has ended, as the driver tells its query loggers; `elapsed` in seconds."""

    @property
    def query(self) -> str: ...
    @property
    def args(self) -> Sequence[object]: ...
    @property
    def elapsed(self) -> float: ...
    @property
    def exception(self) -> BaseException | None: ...


class Connection(Protocol):
    """The part of `asyncpg.Connection` that Tollkeeper uses."""

    async def execute(self, query: str, *args: object, timeout: float | None = None) -> str: ...
    async def executemany(
        self, command: str, args: Iterable[Sequence[object]], *, timeout: float | None = None
    ) -> None: ...
    async def fetch(
        self, query: str, *args: object, timeout: float | None = None
    ) -> Sequence[Row]: ...
    async def fetchrow(
        self, query: str, *args: object, timeout: float | None = None
    ) -> Row | None: ...
    async def fetchval(
        self, query: str, *args: object, column: int = 0, timeout: float | None = None
    ) -> Any: ...
    async def copy_from_query(
        self,
        query: str,
        *args: object,
        output: Callable[[bytes], Awaitable[None]],
        format: str,
        timeout: float | None = None,
    ) -> str: ...
    def cursor(
        self, query: str, *args: object, prefetch: int | None = None
    ) -> AsyncIterable[Row]: ...
    def transaction(
        self, *, isolation: str | None = None, readonly: bool = False, deferrable: bool = False
    ) -> UnitOfWork: ...
    def is_closed(self) -> bool: ...
    def is_in_transaction(self) -> bool: ...
    def get_server_pid(self) -> int: ...
    def get_server_version(self) -> ServerVersion: ...
    def get_settings(self) -> object: ...
    def add_query_logger(self, callback: Callable[[LoggedQuery], None]) -> None: ...
    def add_termination_listener(self, callback: Callable[["Connection"], None]) -> None: ...
    async def close(self, *, timeout: float | None = None) -> None: ...
    def terminate(self) -> None: ...
