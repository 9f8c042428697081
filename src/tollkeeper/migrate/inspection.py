"""What backups ask of whoever knows what a database's rows mean; the slices answer."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from tollkeeper.database.driver import Connection
from tollkeeper.migrate.backup_model import Fact

Connect = Callable[[], Awaitable[Connection]]


class Lost(Protocol):
    """What a database has that another does not."""

    @property
    def count(self) -> int:
        """Transactions; or rows, where nobody knows what they mean."""
        ...

    @property
    def detail(self) -> str:
        """The same for people, with sums."""
        ...


class Inspector(Protocol):
    """Knows one database's invariants."""

    async def facts(self, connection: Connection) -> Mapping[str, Fact]:
        """Return what a restored copy must have alike; one scan, in the caller's snapshot."""
        ...

    async def faults(self, connect: Connect) -> Sequence[str]:
        """Return what is wrong in a database that nobody writes to; as deep as it goes."""
        ...

    async def estimate(self, connection: Connection, facts: Mapping[str, Fact]) -> Lost:
        """Return, in a moment, about what a database has beyond the `facts` of a backup."""
        ...

    async def loss(self, live: Connection, other: Connection) -> Lost:
        """Return exactly what `live` has that `other` does not; nobody may work meanwhile."""
        ...
