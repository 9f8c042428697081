"""Which statements leave a trace, and that the trace has a bound."""

import asyncpg
import pytest
from structlog.testing import capture_logs
from tests.clocks import SetClock

from tollkeeper.database.slow import (
    KEPT,
    LINES_PER_PERIOD,
    TOTALLED,
    SlowQueries,
    failure_of,
)

SQL = "SELECT balance FROM accounts WHERE account_id = 'ann'"
SHOWN = "SELECT balance FROM accounts WHERE account_id = ?"


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def slow(clock: SetClock) -> SlowQueries:
    return SlowQueries(clock=clock, name="credits")


def test_what_is_not_slow_leaves_no_trace(slow: SlowQueries) -> None:
    with capture_logs() as logs:
        slow.note(SQL, wait_s=0.05, run_s=0.05)

    assert (0, (), (), []) == (slow.total, slow.latest(), slow.statements(), logs)


def test_wait_and_run_count_together_and_are_told_apart(slow: SlowQueries, clock: SetClock) -> None:
    with capture_logs() as logs:
        slow.note(SQL, args=("ann", 5), wait_s=0.09, run_s=0.0111, failed="57014")

    (query,) = slow.latest()
    assert (SHOWN, ("str", "int"), 0.09, 0.0111, "57014", None, clock.now()) == (
        query.statement, query.types, query.wait_s, query.run_s, query.failed, query.request_id,
        query.at,
    )  # fmt: skip
    assert [
        {
            "event": "database.slow_query", "log_level": "warning", "database": "credits",
            "statement": SHOWN, "fingerprint": query.fingerprint, "types": ("str", "int"),
            "wait_ms": 90.0, "run_ms": 11.1, "failed": "57014", "unsaid": 0,
        }
    ] == logs  # fmt: skip


def test_the_threshold_is_a_setting_and_zero_turns_it_off(clock: SetClock) -> None:
    strict = SlowQueries(threshold_s=0.001, clock=clock, name="credits")
    off = SlowQueries(threshold_s=0, clock=clock, name="credits")
    for each in (strict, off):
        each.note(SQL, wait_s=0, run_s=0.002)
        each.note(SQL, wait_s=0, run_s=3_600)

    assert (0.001, 2) == (strict.threshold_s, strict.total)
    assert (None, 0) == (off.threshold_s, off.total)


def test_a_statement_has_a_line_a_second_that_says_how_many_had_none(
    slow: SlowQueries, clock: SetClock
) -> None:
    with capture_logs() as logs:
        for _ in range(10):
            slow.note(SQL, wait_s=0, run_s=1)
            clock.advance(0.3)
        slow.note("COMMIT", wait_s=0, run_s=1)

    assert [(SHOWN, 0), (SHOWN, 3), (SHOWN, 3), ("COMMIT", 0)] == [
        (line["statement"], line["unsaid"]) for line in logs
    ]
    assert 11 == slow.total


def test_so_many_statements_have_a_line_a_second_and_no_more(
    slow: SlowQueries, clock: SetClock
) -> None:
    def note_all() -> None:
        for number in range(2 * LINES_PER_PERIOD):
            slow.note(f"SELECT a_{number}", wait_s=0, run_s=1)

    with capture_logs() as logs:
        note_all()
        note_all()
        clock.advance(1)
        note_all()

    assert [0] * LINES_PER_PERIOD + [1] * LINES_PER_PERIOD == [line["unsaid"] for line in logs]


def test_the_last_ones_are_kept_newest_first(slow: SlowQueries) -> None:
    for number in range(KEPT + 5):
        slow.note(SQL, wait_s=0, run_s=1 + number)

    runs = [query.run_s for query in slow.latest()]
    assert [float(1 + number) for number in reversed(range(5, KEPT + 5))] == runs
    assert runs[:3] == [query.run_s for query in slow.latest(3)]
    assert KEPT + 5 == slow.total


def test_totals_are_by_statement_the_costly_first(slow: SlowQueries, clock: SetClock) -> None:
    slow.note("SELECT 1", wait_s=0.2, run_s=0.3)
    clock.advance(5)
    slow.note("SELECT 'x'", wait_s=0, run_s=1, failed="57014")
    slow.note("COMMIT", wait_s=0, run_s=2)

    commit, select = slow.statements()
    assert ("COMMIT", 1, 0, 2.0) == (
        commit.statement, commit.count, commit.failed, commit.longest_s
    )  # fmt: skip
    assert ("SELECT ?", 2, 1, 1.5, 1.0, clock.now()) == (
        select.statement, select.count, select.failed, select.sum_s, select.longest_s,
        select.last_at,
    )  # fmt: skip
    assert (commit,) == slow.statements(1)


def test_of_more_statements_than_are_totalled_the_last_stay(slow: SlowQueries) -> None:
    slow.note("SELECT again", wait_s=0, run_s=1)
    for number in range(TOTALLED + 50):
        slow.note(f"SELECT a_{number}", wait_s=0, run_s=1)
        slow.note("SELECT again", wait_s=0, run_s=1)

    kept = {each.statement: each.count for each in slow.statements()}
    assert TOTALLED == len(kept)
    assert TOTALLED + 51 == kept["SELECT again"]
    assert f"SELECT a_{TOTALLED + 49}" in kept
    assert "SELECT a_0" not in kept


def test_no_name_that_looks_like_a_key_is_kept(slow: SlowQueries) -> None:
    with capture_logs() as logs:
        slow.note(f"SELECT tk_live_{'0a' * 10}", wait_s=0, run_s=1)

    assert "SELECT tk_live_***" == slow.latest()[0].statement == logs[0]["statement"]


def test_a_failure_is_named_by_state_or_kind() -> None:
    assert [None, "22012", "TimeoutError"] == [
        failure_of(error) for error in (None, asyncpg.DivisionByZeroError("x"), TimeoutError())
    ]
