"""Buckets cover a range without a gap; a moment is in the one that a clock on the wall names."""

from bisect import bisect_right
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

from hypothesis import given
from hypothesis import strategies as st
from tests.usage import wall

from tollkeeper.credits.usage import FIRST, SLOT, By, Question, slot_of

zones = st.sampled_from(sorted(available_timezones())).map(ZoneInfo)
moments = st.integers(0, 50 * 365 * 96).map(lambda slots: FIRST + slots * SLOT)


@given(
    start=moments,
    slots=st.integers(1, 5_000),
    by=st.sampled_from((By.DAY, By.MONTH)),
    zone=zones,
    part=st.integers(0, 999_999),
)
def test_a_moment_is_in_the_bucket_that_the_wall_clock_names(
    *, start: datetime, slots: int, by: By, zone: ZoneInfo, part: int
) -> None:
    end = start + slots * SLOT
    bounds = Question(start=start, end=end, by=by, zone_name=zone.key, zone=zone).bounds()
    moment = start + (end - start) * part // 1_000_000
    begins = bounds[bisect_right(bounds, moment) - 1]

    assert (start, end) == (bounds[0], bounds[-1])
    assert all(one < other and slot_of(other) == other for one, other in pairwise(bounds))
    assert wall(moment, by, zone) == wall(begins, by, zone)
    if begins > start:
        before = begins - timedelta(microseconds=1)
        assert wall(before, by, zone) != wall(begins, by, zone)


@given(start=moments, slots=st.integers(1, 5_000), zone=zones)
def test_hours_are_hours(start: datetime, slots: int, zone: ZoneInfo) -> None:
    end = start + slots * SLOT
    bounds = Question(start=start, end=end, by=By.HOUR, zone_name=zone.key, zone=zone).bounds()

    assert all(other - one == timedelta(hours=1) for one, other in pairwise(bounds[1:-1]))
    assert all(each.tzinfo is UTC for each in bounds)
