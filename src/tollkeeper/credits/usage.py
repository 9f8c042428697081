"""Usage: over which time, in which buckets, and what is said of each.

Not which rows (`usage_store.py`). Transactions are rolled up in slots of a quarter of an hour, UTC:
ranges begin and end with a slot, and so do the days and months of every time zone of today. Thus
whatever is asked is a sum of whole slots, and exact. Amounts are integers throughout.

Invariants: a range is half-open; its buckets follow each other without a gap, from its beginning to
its end. Pure.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from enum import StrEnum
from typing import Final

from tollkeeper.credits.requests import invalid
from tollkeeper.kernel.ids import AccountId, TenantId

SLOT: Final = timedelta(minutes=15)
"""What transactions are rolled up by."""

FEATURE_LIMIT: Final = 128
"""Characters in a feature; a longer one counts as not said. The schema knows it, too."""

BUCKETS_LIMIT: Final = 10_000
"""Most buckets in a range: an hour each, more than a year."""

FIRST: Final = datetime(2000, 1, 1, tzinfo=UTC)
LAST: Final = datetime(2100, 1, 1, tzinfo=UTC)
"""What may be asked for lies between. The zones' older rules were not in quarters of an hour."""

MEAN_PLACES: Final = 4
"""Decimal places of a mean."""

_HOUR = timedelta(hours=1)
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_MOMENT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(Z|[+-][0-9]{2}:[0-9]{2})"
)
_RULE = "must be a date (2026-01-31) or an RFC 3339 moment (2026-01-31T09:00:00Z)"


class By(StrEnum):
    """What usage is broken down by."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"
    FEATURE = "feature"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What happened in a bucket, in minor units; `peak_balance` is None where nothing did."""

    consumed: int = 0
    purchased: int = 0
    refunded: int = 0
    count: int = 0
    transactions: int = 0
    peak_balance: int | None = None

    @property
    def net(self) -> int:
        """Return what was consumed and not given back."""
        return self.consumed - self.refunded

    @property
    def mean(self) -> str | None:
        """Return the mean consumption as a decimal, rounded half to even; None without any."""
        if not self.count:
            return None
        scale = 10**MEAN_PLACES
        units, rest = divmod(self.consumed * scale, self.count)
        if 2 * rest > self.count or (2 * rest == self.count and units % 2):
            units += 1
        return f"{units // scale}.{units % scale:0{MEAN_PLACES}}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """The usage of a part of the range, or, by feature, of one feature in all of it."""

    start: datetime
    end: datetime
    usage: Usage
    feature: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Whose usage, over which time, broken down by what.

    Of an account, or of all accounts of a tenant. `zone` is `zone_name`'s.
    """

    account_id: AccountId | None = None
    tenant_id: TenantId | None = None
    start: datetime
    end: datetime
    by: By
    zone_name: str
    zone: tzinfo

    def bounds(self) -> tuple[datetime, ...]:
        """Return where buckets begin, and where the last one ends.

        Raises:
            InvalidRequest: there are too many.
        """
        return _bounds(self.start, self.end, self.by, self.zone)


@dataclass(frozen=True, slots=True)
class Cursor:
    """Behind which bucket to go on: the one that begins at `at`, or the one of `feature`."""

    at: datetime | None = None
    feature: str | None = None

    def place(self, bounds: tuple[datetime, ...]) -> tuple[int, str]:
        """Return the cursor as number of the bucket, counted from 1, and feature."""
        if self.feature is not None:
            return (0, self.feature)
        return (-1, "") if self.at is None else (bisect_right(bounds, self.at), "")


START: Final = Cursor()


def by_of(text: str) -> By:
    """Return the breakdown of a query parameter.

    Raises:
        InvalidRequest: there is none of this name.
    """
    if text not in set(By):
        raise invalid("by", "must be hour, day, month or feature")
    return By(text)


def zone_of(text: str, known: Callable[[str], tzinfo | None]) -> tzinfo:
    """Return the time zone of a query parameter.

    Raises:
        InvalidRequest: it is not known.
    """
    zone = known(text)
    if zone is None:
        raise invalid("time_zone", "must be UTC or the IANA name of a time zone (Europe/Berlin)")
    return zone


def range_of(
    start: str | None, end: str | None, *, by: By, zone: tzinfo, now: datetime
) -> tuple[datetime, datetime]:
    """Return the range between two query parameters; what is left out depends on `by`.

    Without an end it ends with the slot of `now`; without a start it takes 2 days by the hour, 30
    days by day or feature, 12 months by month, from the beginning of a bucket on.

    Raises:
        InvalidRequest: a parameter is no moment, not at a quarter of an hour, or out of order.
    """
    until = slot_of(now) + SLOT if end is None else _moment("to", end, zone)
    since = _earlier(until, by, zone) if start is None else _moment("from", start, zone)
    if until <= since:
        raise invalid("to" if end is not None else "from", "the range must end after it begins")
    return since, until


def slot_of(moment: datetime) -> datetime:
    """Return the beginning of the slot that a moment is in."""
    return moment - (moment - FIRST) % SLOT


def cursor_of(text: str, by: By) -> Cursor:
    """Return the cursor that `cursor_text` wrote.

    Raises:
        InvalidRequest: it did not.
    """
    if by is By.FEATURE and text.startswith("=") and len(text) <= FEATURE_LIMIT + 1:
        if "\0" not in text:
            return Cursor(feature=text[1:])
    elif by is not By.FEATURE and text.isascii() and text.isdigit() and len(text) <= 10:
        return Cursor(at=datetime.fromtimestamp(int(text), UTC))
    raise invalid("after", "must be `next` of the page before, for the same `by`")


def cursor_text(bucket: Bucket) -> str:
    """Return the cursor behind a bucket."""
    if bucket.feature is not None:
        return f"={bucket.feature}"
    return str(int(bucket.start.timestamp()))


def _moment(field: str, text: str, zone: tzinfo) -> datetime:
    text = text.replace(" ", "+")  # what a query string makes of a plus that was not escaped
    try:
        if _DATE.fullmatch(text) is not None:
            moment = _midnight(date.fromisoformat(text), zone)
        elif _MOMENT.fullmatch(text) is not None:
            moment = datetime.fromisoformat(text).astimezone(UTC)
        else:
            raise invalid(field, _RULE)
    except (ValueError, OverflowError) as error:
        raise invalid(field, _RULE) from error
    if not FIRST <= moment <= LAST:
        raise invalid(field, f"must lie between {FIRST.year} and {LAST.year}")
    if slot_of(moment) != moment:
        raise invalid(
            field, "must be at a quarter of an hour (:00, :15, :30 or :45), so that it is exact"
        )
    return moment


def _earlier(until: datetime, by: By, zone: tzinfo) -> datetime:
    """Return where a range begins that only has an end."""
    if by is By.HOUR:
        since = _hour(until - timedelta(days=2), zone)
    else:
        last = (until - SLOT).astimezone(zone).date()
        if by is By.MONTH:
            months = last.year * 12 + last.month - 12
            since = _midnight(date(months // 12, months % 12 + 1, 1), zone)
        else:
            since = _midnight(last - timedelta(days=29), zone)
    return max(FIRST, since)


def _bounds(start: datetime, end: datetime, by: By, zone: tzinfo) -> tuple[datetime, ...]:
    bounds = [start]
    if by is not By.FEATURE:
        for moment in _beginnings(start, by, zone):
            if moment >= end:
                break
            if moment > bounds[-1]:  # where a day was left out, two begin at once
                bounds.append(moment)
            if len(bounds) > BUCKETS_LIMIT:
                raise invalid(
                    "by", f"makes more than {BUCKETS_LIMIT:,} buckets of this range: ask for less"
                )
    return (*bounds, end)


def _beginnings(start: datetime, by: By, zone: tzinfo) -> Iterator[datetime]:
    """Yield where buckets begin, from the one that `start` is in, without end."""
    if by is By.HOUR:
        moment = _hour(start, zone)
        while True:
            yield moment
            moment += _HOUR
    day = start.astimezone(zone).date()
    if by is By.MONTH:
        day = day.replace(day=1)
    while True:
        yield _midnight(day, zone)
        day = (day + timedelta(days=32)).replace(day=1) if by is By.MONTH else day + _DAY


_DAY = timedelta(days=1)


def _hour(moment: datetime, zone: tzinfo) -> datetime:
    """Return the beginning of the hour, as the zone's clocks show it."""
    return moment - timedelta(minutes=moment.astimezone(zone).minute)


def _midnight(day: date, zone: tzinfo) -> datetime:
    """Return when a day begins; where midnight was left out, when clocks were set over it."""
    return datetime.combine(day, time(), zone).astimezone(UTC)
