"""Where pools connect, round after round."""

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
