"""Which host is written to and which is read from, given what each said of itself. Pure.

A host that answers is not enough: a demoted primary answers `SELECT 1` for days (gpustack #6105).
Of two that would take writes the one with the higher timeline is right: a promotion starts a new
timeline, so the other is a former primary that was not fenced. Timelines only rise: once a higher
one was seen, a primary below it is none, however alone it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tollkeeper.database.dsn import Host
from tollkeeper.database.status import HostState, Probe

READABLE = frozenset({HostState.PRIMARY, HostState.READ_ONLY, HostState.STANDBY})


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCheck:
    """What one check of one host found. Durations are seconds."""

    host: Host
    state: HostState
    timeline: int | None = None
    """Of a primary, the timeline it writes."""
    latency_s: float | None = None
    lag_s: float | None = None
    probe: Probe = Probe.SKIPPED
    version: str | None = None
    connections: tuple[int, int] | None = None
    """How many the server takes, and how many of them are reserved."""
    says_read_only: bool = False
    """It said itself that it takes no writes: there is nothing to make sure of."""
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Where pools connect; None when no host will do."""

    writes: Host | None = None
    reads: Host | None = None
    timeline: int = 0
    """The highest that a primary ever had."""


def choose(checks: Sequence[HostCheck], present: Choice) -> Choice:
    """Choose the hosts; what is in use stays as long as nothing is better than it.

    Reads go where writes go. Without a primary they go on at any host that answers: the one in use,
    or the one that is least behind. Of a single host the timeline says nothing: whoever restored it
    from a backup may have begun a lower one.
    """
    primaries = [check for check in checks if check.state is HostState.PRIMARY]
    known = present.timeline if len(checks) > 1 else 0
    best = max((check.timeline or 0 for check in primaries), default=0)
    timeline = max(known, best)
    right = [check.host for check in primaries if (check.timeline or 0) == timeline]
    writes = _first(right, present.writes)
    if writes is not None:
        return Choice(writes=writes, reads=writes, timeline=timeline)
    behind = sorted(
        (check for check in checks if check.state in READABLE),
        key=lambda check: float("inf") if check.lag_s is None else check.lag_s,
    )
    reads = _first([check.host for check in behind], present.reads)
    return Choice(writes=None, reads=reads, timeline=timeline)


def _first(hosts: Sequence[Host], present: Host | None) -> Host | None:
    if present in hosts:
        return present
    return hosts[0] if hosts else None
