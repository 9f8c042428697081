"""How long work says how far it is, and what it did."""

from collections.abc import Callable, Mapping
from typing import Protocol

Log = Callable[[Mapping[str, object]], None]
"""Takes one event: `event` is its dotted name, the rest plain JSON values and never a secret."""


class Progress(Protocol):
    """Shows one piece of work after the other; they are not nested."""

    def begin(self, what: str, total: int | None) -> None:
        """Begin a piece of `total` bytes; None: nobody knows."""
        ...

    def advance(self, done: int) -> None:
        """Add `done` bytes."""
        ...

    def end(self) -> None:
        """End it, whether all was done or not."""
        ...


class Silent:
    """Shows nothing."""

    def begin(self, what: str, total: int | None) -> None:
        """Show nothing."""

    def advance(self, done: int) -> None:
        """Show nothing."""

    def end(self) -> None:
        """Show nothing."""


def unlogged(_: Mapping[str, object]) -> None:
    """Keep no event."""
