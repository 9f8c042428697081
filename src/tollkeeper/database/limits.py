"""Bounds of a pool beside its size (pure)."""

from dataclasses import dataclass

REPORT_HELD_S = 30.0
"""Who holds a connection longer is reported, unless it is expected to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLimits:
    """Bounds of a pool beside its size. Durations are seconds."""

    acquire_timeout_s: float = 5.0
    """How long an acquire waits unless it, or its request, says less."""
    max_waiting: int = 10_000
    """Who would wait behind so many is refused at once."""
    lifetime_s: float = 3_600.0
    """A connection is replaced at this age, less the jitter."""
    idle_s: float = 300.0
    """A connection above the minimum that was idle so long is closed."""
    report_held_s: float = REPORT_HELD_S
    """Who holds a connection longer is reported, once."""
    cut_held_s: float | None = None
    """Who holds a connection longer is hung up on: for what is short by nature, so that a server
    that never answers, or a network that swallows, keeps nobody. None: never."""
    tick_s: float = 1.0
    """How often ages are looked at."""


def check_size(size: int, minimum: int) -> None:
    """Refuse bounds that cannot be.

    Raises:
        ValueError: no connection at all, or a minimum above the size.
    """
    if size < 1:
        raise ValueError("a pool needs at least one connection")
    if not 0 <= minimum <= size:
        raise ValueError("a pool's minimum is 0 at least and its size at most")
