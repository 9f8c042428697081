"""Where pools connect, round after round."""

from typing import cast

import pytest

from tollkeeper.database.driver import Connection
from tollkeeper.database.dsn import Host
from tollkeeper.database.places import Places
from tollkeeper.database.roles import HostCheck
from tollkeeper.database.status import Access, HostState

A, B = Host(name="a"), Host(name="b")


def places_of(*hosts: Host) -> Places:
    return Places(hosts, now_s=lambda: 0.0)


def primary(host: Host, timeline: int = 1) -> HostCheck:
    return HostCheck(host=host, state=HostState.PRIMARY, timeline=timeline)


def standby(host: Host) -> HostCheck:
    return HostCheck(host=host, state=HostState.STANDBY, lag_s=0.0, says_read_only=True)


def offline(host: Host) -> HostCheck:
    return HostCheck(host=host, state=HostState.OFFLINE)


def test_single_host_is_home_before_anybody_looked() -> None:
    assert A == places_of(A).home(Access.WRITE)
    assert places_of(A, B).home(Access.WRITE) is None


def test_moment_without_the_primary_moves_nothing() -> None:
    places = places_of(A, B)
    places.judge([primary(A), standby(B)])

    for _ in range(2):
        assert () == places.judge([offline(A), standby(B)])
        assert (A, A) == (places.home(Access.WRITE), places.home(Access.READ))
        assert places.choice.reads is None
        assert not places.says_read_only()


def test_third_round_without_a_primary_moves_the_reads_and_its_return_moves_them_back() -> None:
    places = places_of(A, B)
    places.judge([primary(A), standby(B)])
    for _ in range(2):
        places.judge([offline(A), standby(B)])

    (move,) = places.judge([offline(A), standby(B)])
    assert (Access.READ, A, B, True) == (
        move.access, move.former, move.present, move.is_former_silent,
    )  # fmt: skip
    assert A == places.home(Access.WRITE)

    (back,) = places.judge([primary(A), standby(B)])
    assert (Access.READ, B, A, False) == (
        back.access, back.former, back.present, back.is_former_silent,
    )  # fmt: skip


def test_demoted_primary_that_answers_is_read_on() -> None:
    places = places_of(A, B)
    places.judge([primary(A), offline(B)])
    demoted = HostCheck(host=A, state=HostState.READ_ONLY, says_read_only=True)

    assert () == places.judge([demoted, offline(B)])
    assert A == places.choice.reads
    assert places.says_read_only()


def test_promotion_moves_both_at_once() -> None:
    places = places_of(A, B)
    places.judge([primary(A), standby(B)])

    moves = places.judge([offline(A), primary(B, 2)])

    assert [(Access.WRITE, B), (Access.READ, B)] == [(m.access, m.present) for m in moves]
    assert all(move.is_former_silent for move in moves)
    assert () == places.judge([primary(A, 1), offline(B)])
    assert B == places.home(Access.WRITE)


class _Flow:
    """Stands for a connection: a thing that can be remembered."""


def written_after(*statements: str, access: Access = Access.WRITE) -> bool:
    now_s = iter(range(1, 100))
    places = Places([A], now_s=lambda: float(next(now_s)))
    flow = cast("Connection", _Flow())
    places.note_connected(flow, A)
    for statement in statements:
        places.note_answer(flow, access, statement)
    assert places.answered_s(A, writes=False) == len(statements)
    return places.answered_s(A, writes=True) == len(statements)


@pytest.mark.parametrize(
    ("statements", "has_written"),
    [
        (["SELECT 1"], False),
        (["INSERT INTO t VALUES (1)"], True),
        (["WITH moved AS (UPDATE t SET a = 1) SELECT 1"], True),
        (["BEGIN;", "INSERT INTO t VALUES (1)"], False),
        (["BEGIN;", "INSERT INTO t VALUES (1)", "COMMIT;"], True),
        (["BEGIN;", "INSERT INTO t VALUES (1)", "ROLLBACK;"], False),
        (["BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;", "SELECT 1", "COMMIT;"], False),
        (["BEGIN;", "COMMIT;", "UPDATE t SET a = 1"], True),
        (["COMMIT;"], False),
    ],
)
def test_only_what_is_committed_has_been_written(statements: list[str], has_written: bool) -> None:
    assert has_written is written_after(*statements)
    assert written_after(*statements, access=Access.READ) is False


def test_nobody_said_anything_before_the_first_round() -> None:
    assert not places_of(A).says_read_only()
    assert not places_of(A, B).says_read_only()
