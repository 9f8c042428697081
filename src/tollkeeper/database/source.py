"""What metrics, routes and people read of a database, as one process sees it."""

from collections.abc import Mapping
from typing import Protocol

from tollkeeper.database.histogram import Histogram
from tollkeeper.database.slow import SlowQueries
from tollkeeper.database.status import DatabaseStatus


class PoolDurations(Protocol):
    """How long things took in a pool, in seconds."""

    @property
    def wait_times(self) -> Histogram:
        """From asking for a connection to having it."""
        ...

    @property
    def use_times(self) -> Histogram:
        """From having a connection to giving it back."""
        ...

    @property
    def create_times(self) -> Histogram:
        """Opening a connection."""
        ...


class Source(Protocol):
    """One database of a process; reading it costs no round trip."""

    def status(self) -> DatabaseStatus:
        """Return how it stands now."""
        ...

    @property
    def pools(self) -> Mapping[str, PoolDurations]:
        """Its pools by name: those of the status."""
        ...

    @property
    def operations(self) -> Histogram:
        """How long statements ran."""
        ...

    @property
    def checks(self) -> Histogram:
        """How long health checks took."""
        ...

    @property
    def slow(self) -> SlowQueries:
        """Its slow statements."""
        ...
