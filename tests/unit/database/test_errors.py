import pytest

from tollkeeper.database.connect import is_connection_lost, is_generation_over, is_retryable
from tollkeeper.database.errors import (
    DatabaseDown,
    DatabaseError,
    DatabaseMisconfigured,
    DatabaseUnavailable,
    NestedAcquire,
    PoolClosed,
    PoolFull,
    PoolTimeout,
    ReadOnlyServer,
    TooManyConnections,
)

EVERY = [
    (PoolTimeout(waited_s=5.0, size=8), "none of 8 database connections became free in 5 s"),
    (PoolFull(waiting=9, limit=8), "9 callers wait for a database connection, 8 may"),
    (
        PoolFull(waiting=9, limit=99, expected_s=12.3456),
        "a database connection would become free in 12.3 s only: 9 callers wait for one",
    ),
    (
        NestedAcquire(pool="reads"),
        "a task that holds a connection of the pool 'reads' asked for another one",
    ),
    (
        DatabaseDown(retry_after_s=2.5, access="write"),
        "the database is down for writes: it was lost and has not come back",
    ),
    (
        ReadOnlyServer(),
        "the database cannot be written to: it does not accept writes, as a standby does not",
    ),
    (TooManyConnections(reason="sorry"), "the database has no connection left: sorry"),
    (DatabaseMisconfigured(reason="the host db is not known."), "the host db is not known."),
]
UNAVAILABLE = [
    DatabaseUnavailable(reason="away"),
    DatabaseDown(retry_after_s=1.0, access="read"),
    ReadOnlyServer(),
    TooManyConnections(reason="sorry"),
    DatabaseMisconfigured(reason="no."),
]
BUSY = [PoolTimeout(waited_s=1.0, size=1), PoolFull(waiting=1, limit=1)]
OURS = [NestedAcquire(pool="reads"), PoolClosed()]


@pytest.mark.parametrize(("error", "sentence"), EVERY)
def test_error_says_what_happened(error: DatabaseError, sentence: str) -> None:
    assert sentence == str(error)


@pytest.mark.parametrize("error", UNAVAILABLE)
def test_whatever_is_unavailable_is_lost_and_may_be_tried_again(error: DatabaseError) -> None:
    assert is_connection_lost(error)
    assert is_retryable(error)


@pytest.mark.parametrize("error", BUSY)
def test_busy_pool_lost_nothing_and_may_be_tried_again(error: DatabaseError) -> None:
    assert not is_connection_lost(error)
    assert is_retryable(error)


@pytest.mark.parametrize("error", OURS)
def test_our_own_mistakes_and_leaving_are_not_tried_again(error: DatabaseError) -> None:
    assert not is_connection_lost(error)
    assert not is_retryable(error)


def test_only_a_server_that_refuses_writes_ends_a_generation_by_its_type() -> None:
    assert [ReadOnlyServer] == [type(e) for e in (*UNAVAILABLE, *BUSY) if is_generation_over(e)]
