import pytest

from tollkeeper.web.attempts import ADDRESSES_LIMIT, FAILURES_BURST, FailedAttempts


def use_up(attempts: FailedAttempts, address: str, now_s: float) -> None:
    for _ in range(FAILURES_BURST):
        assert 0 == attempts.wait_s(address, now_s)


def test_a_burst_is_answered_and_then_waits() -> None:
    attempts = FailedAttempts()
    use_up(attempts, "10.0.0.1", 5.0)

    assert 1 == attempts.wait_s("10.0.0.1", 5.0)
    assert 1 == attempts.wait_s("10.0.0.1", 5.9)


def test_who_waits_as_told_is_answered() -> None:
    attempts = FailedAttempts()
    use_up(attempts, "10.0.0.1", 5.0)

    assert 0 == attempts.wait_s("10.0.0.1", 5.0 + attempts.wait_s("10.0.0.1", 5.0))


def test_addresses_do_not_share() -> None:
    attempts = FailedAttempts()
    use_up(attempts, "10.0.0.1", 5.0)

    assert 0 == attempts.wait_s("10.0.0.2", 5.0)


@pytest.mark.parametrize(
    ("one", "other", "are_one"),
    [
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("no:address", "no:other", False),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
    ],
)
def test_an_ipv6_network_is_one_address(one: str, other: str, are_one: bool) -> None:
    attempts = FailedAttempts()
    use_up(attempts, one, 5.0)

    assert are_one == (attempts.wait_s(other, 5.0) > 0)


def test_many_addresses_take_no_more_memory() -> None:
    attempts = FailedAttempts()
    use_up(attempts, "first", 0.0)
    use_up(attempts, "busy", 0.0)
    for number in range(ADDRESSES_LIMIT + 100):
        attempts.wait_s(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 0.0)
        assert number % 100 or attempts.wait_s("busy", 0.0) > 0

    assert ADDRESSES_LIMIT == len(attempts)
    assert 0 == attempts.wait_s("first", 0.0)  # failed longest ago, and was forgotten
    assert attempts.wait_s("busy", 0.0) > 0


def test_a_clock_that_stands_or_goes_back_gives_nothing() -> None:
    attempts = FailedAttempts()
    use_up(attempts, "a", 100.0)

    assert attempts.wait_s("a", 50.0) > 0
