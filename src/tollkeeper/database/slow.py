"""Slow statements of one database: counted, the last ones kept, and logged with a limit.

A statement's time is the wait for its connection and its run. What is kept and logged has no value
of it (`statements.py`). Everything here is bounded: the statements kept, those totalled, those
whose last line in the log is remembered, and the lines themselves.
"""

import math
from collections import OrderedDict, deque
from dataclasses import dataclass
from datetime import datetime

import structlog

from tollkeeper.database.statements import (
    MAX_READ,
    fingerprint_of,
    normalised,
    parameter_types,
)
from tollkeeper.kernel.clock import Clock
from tollkeeper.telemetry.masking import masked_text
from tollkeeper.telemetry.request import current_request_id

THRESHOLD_S = 0.1
"""From more than this a statement is slow (SPEC D2)."""

KEPT = 100
"""Slow statements kept, the last ones."""

TOTALLED = 200
"""Different statements whose totals are kept: those that were slow last."""

LOG_PERIOD_S = 1.0
"""Least time between two lines about one statement."""

LINES_PER_PERIOD = 20
"""Most lines in that time, however many statements there are."""

_TEXTS = 256
"""Texts whose shown form is remembered: services have fewer; showing one takes a millisecond."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowQuery:
    """One statement that was slow."""

    at: datetime
    """When it ended, UTC."""
    statement: str
    """Without values."""
    fingerprint: str
    types: tuple[str, ...]
    """Of its parameters."""
    wait_s: float
    """For a connection."""
    run_s: float
    failed: str | None
    """SQLSTATE, or the class of the error."""
    request_id: str | None

    @property
    def duration_s(self) -> float:
        """Wait and run."""
        return self.wait_s + self.run_s


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowStatement:
    """How often a statement was slow, while it is remembered."""

    statement: str
    fingerprint: str
    count: int
    failed: int
    sum_s: float
    longest_s: float
    last_at: datetime


class _Seen:
    """Totals of one statement, and what the log knows of it."""

    __slots__ = (
        "count", "failed", "last_at", "logged_s", "longest_s", "statement", "sum_s", "unsaid",
    )  # fmt: skip

    def __init__(self, statement: str) -> None:
        self.statement = statement
        self.count = 0
        self.failed = 0
        self.sum_s = 0.0
        self.longest_s = 0.0
        self.last_at: datetime | None = None
        self.logged_s = -math.inf
        self.unsaid = 0


class SlowQueries:
    """Takes note of every statement of a database; those that took long leave a trace."""

    __slots__ = (
        "_clock",
        "_kept",
        "_limit_s",
        "_lines",
        "_lines_since_s",
        "_seen",
        "_texts",
        "name",
        "total",
    )  # fmt: skip

    def __init__(self, *, threshold_s: float = THRESHOLD_S, clock: Clock, name: str) -> None:
        """`threshold_s` 0: no statement counts as slow. `name` is the database's."""
        self._limit_s = threshold_s or math.inf
        self._clock = clock
        self.name = name
        self._kept: deque[SlowQuery] = deque(maxlen=KEPT)
        self._seen: OrderedDict[str, _Seen] = OrderedDict()  # the slow ones of late at the end
        self._texts: dict[str, tuple[str, str]] = {}
        self._lines = 0
        self._lines_since_s = -math.inf
        self.total = 0
        """Statements that were slow; only grows."""

    @property
    def threshold_s(self) -> float | None:
        """From more than this a statement is slow; None: none is."""
        return None if math.isinf(self._limit_s) else self._limit_s

    def note(
        self,
        statement: str,
        *,
        args: object = (),
        wait_s: float,
        run_s: float,
        failed: str | None = None,
    ) -> None:
        """Take note of a statement that has ended, with what was given for its parameters."""
        if wait_s + run_s <= self._limit_s:
            return
        self.total += 1
        shown, fingerprint = self._shown(statement)
        query = SlowQuery(
            at=self._clock.now(),
            statement=shown,
            fingerprint=fingerprint,
            types=parameter_types(args),
            wait_s=wait_s,
            run_s=run_s,
            failed=failed,
            request_id=current_request_id(),
        )
        self._kept.append(query)
        self._tell(query, self._count(query))

    def latest(self, limit: int = KEPT) -> tuple[SlowQuery, ...]:
        """Return the last slow statements, newest first."""
        return tuple(reversed(self._kept))[:limit]

    def statements(self, limit: int = TOTALLED) -> tuple[SlowStatement, ...]:
        """Return the statements that were slow of late, those that took most time first."""
        costly = sorted(self._seen.items(), key=lambda item: item[1].sum_s, reverse=True)
        return tuple(_total_of(fingerprint, seen) for fingerprint, seen in costly[:limit])

    def _shown(self, statement: str) -> tuple[str, str]:
        known = self._texts.get(statement)
        if known is not None:
            return known
        # A name in quotes may look like a card number or a key; a shown statement goes everywhere.
        shown = masked_text(normalised(statement))
        found = (shown, fingerprint_of(shown))
        if len(statement) <= MAX_READ:
            if len(self._texts) >= _TEXTS:
                self._texts.clear()
            self._texts[statement] = found
        return found

    def _count(self, query: SlowQuery) -> _Seen:
        seen = self._seen.get(query.fingerprint)
        if seen is None:
            if len(self._seen) >= TOTALLED:
                self._seen.popitem(last=False)
            seen = self._seen[query.fingerprint] = _Seen(query.statement)
        self._seen.move_to_end(query.fingerprint)
        seen.count += 1
        seen.failed += query.failed is not None
        seen.sum_s += query.duration_s
        seen.longest_s = max(seen.longest_s, query.duration_s)
        seen.last_at = query.at
        return seen

    def _tell(self, query: SlowQuery, seen: _Seen) -> None:
        now_s = self._clock.monotonic_s()
        if now_s - self._lines_since_s >= LOG_PERIOD_S:
            self._lines, self._lines_since_s = 0, now_s
        if now_s - seen.logged_s < LOG_PERIOD_S or self._lines >= LINES_PER_PERIOD:
            seen.unsaid += 1
            return
        _log.warning(
            "database.slow_query",
            database=self.name,
            statement=query.statement,
            fingerprint=query.fingerprint,
            types=query.types,
            wait_ms=round(query.wait_s * 1_000, 1),
            run_ms=round(query.run_s * 1_000, 1),
            failed=query.failed,
            unsaid=seen.unsaid,
        )
        self._lines += 1
        seen.logged_s, seen.unsaid = now_s, 0


def failure_of(error: BaseException | None) -> str | None:
    """Return how a statement failed: its SQLSTATE, or what kind of error it was."""
    if error is None:
        return None
    state = getattr(error, "sqlstate", None)
    return state if isinstance(state, str) else type(error).__name__


def _total_of(fingerprint: str, seen: _Seen) -> SlowStatement:
    assert seen.last_at is not None
    return SlowStatement(
        statement=seen.statement,
        fingerprint=fingerprint,
        count=seen.count,
        failed=seen.failed,
        sum_s=seen.sum_s,
        longest_s=seen.longest_s,
        last_at=seen.last_at,
    )
