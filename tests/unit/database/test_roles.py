"""Which host is written to and read from."""

import pytest

from tollkeeper.database.dsn import Host
from tollkeeper.database.roles import Choice, HostCheck, choose
from tollkeeper.database.status import HostState

A, B, C = (Host(name=name) for name in "abc")
NOBODY = Choice()


def primary(host: Host, timeline: int = 1) -> HostCheck:
    return HostCheck(host=host, state=HostState.PRIMARY, timeline=timeline)


def standby(host: Host, lag_s: float | None = 0.0) -> HostCheck:
    return HostCheck(host=host, state=HostState.STANDBY, lag_s=lag_s)


def offline(host: Host) -> HostCheck:
    return HostCheck(host=host, state=HostState.OFFLINE)


def both(host: Host, timeline: int = 1) -> Choice:
    return Choice(writes=host, reads=host, timeline=timeline)


def test_the_primary_takes_both() -> None:
    assert both(B) == choose([standby(A), primary(B)], NOBODY)


def test_of_two_primaries_the_later_timeline_is_right() -> None:
    assert both(B, 2) == choose([primary(A, 1), primary(B, 2)], both(A))
    assert both(A, 3) == choose([primary(A, 3), primary(B, 2)], both(A))


def test_former_primary_stays_one_however_alone_it_is() -> None:
    """Nobody fenced it: what is written there is lost when the right one is back."""
    found = choose([primary(A, 1), offline(B)], both(B, 2))

    assert Choice(writes=None, reads=A, timeline=2) == found
    assert both(B, 2) == choose([primary(A, 1), primary(B, 2)], found)


def test_of_a_single_host_a_lower_timeline_is_as_good() -> None:
    """It was restored from a backup; there is nobody else to be right."""
    assert both(A, 1) == choose([primary(A, 1)], both(A, 4))


def test_of_equal_primaries_the_present_one_stays() -> None:
    assert both(B) == choose([primary(A), primary(B)], both(B))
    assert both(A) == choose([primary(A), primary(B)], NOBODY)


def test_without_a_primary_the_least_behind_is_read() -> None:
    checks = [offline(A), standby(B, 9.0), standby(C, 0.5)]

    assert Choice(reads=C) == choose(checks, NOBODY)
    assert Choice(reads=C) == choose([standby(B, None), standby(C, 60.0)], NOBODY)


def test_without_a_primary_the_host_that_is_read_stays() -> None:
    checks = [offline(A), standby(B, 9.0), standby(C, 0.5)]

    assert Choice(reads=B) == choose(checks, Choice(writes=A, reads=B))


@pytest.mark.parametrize("state", [HostState.READ_ONLY, HostState.STANDBY])
def test_host_that_refuses_to_write_is_read_only(state: HostState) -> None:
    found = choose([HostCheck(host=A, state=state)], both(A, 0))

    assert Choice(reads=A) == found


@pytest.mark.parametrize("state", [HostState.OFFLINE, HostState.UNKNOWN])
def test_host_that_says_nothing_is_nothing(state: HostState) -> None:
    assert NOBODY == choose([HostCheck(host=A, state=state)], both(A, 0))
