from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo, available_timezones

import pytest

from tollkeeper.credits.errors import InvalidRequest
from tollkeeper.credits.model import Kind
from tollkeeper.credits.usage import (
    BUCKETS_LIMIT,
    FIRST,
    SLOT,
    Bucket,
    By,
    Question,
    Usage,
    by_of,
    cursor_of,
    cursor_text,
    range_of,
    zone_of,
)
from tollkeeper.credits.usage_messages import (
    csv_head,
    csv_line,
    json_head,
    json_item,
    usage_item,
    usage_view,
)
from tollkeeper.kernel.ids import AccountId, TenantId

NOW = datetime(2026, 3, 31, 10, 7, 30, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")
KATHMANDU = ZoneInfo("Asia/Kathmandu")


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def question(
    by: By = By.DAY,
    start: str = "2026-03-01T00:00:00Z",
    end: str = "2026-04-01T00:00:00Z",
    zone: tzinfo = UTC,
) -> Question:
    return Question(
        account_id=AccountId("ann"), tenant_id=TenantId("acme"), start=at(start), end=at(end),
        by=by, zone_name=getattr(zone, "key", "UTC"), zone=zone,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("expected", "consumed", "count"),
    [
        ("0.3333", 1, 3),
        ("0.6667", 2, 3),
        ("12.5000", 25, 2),
        ("0.0000", 1, 20_000),  # half to even
        ("0.0002", 3, 20_000),
        ("9223372036854775807.0000", 3 * (2**63 - 1), 3),
    ],
)
def test_a_mean_is_an_exact_decimal(expected: str, consumed: int, count: int) -> None:
    assert expected == Usage(consumed=consumed, count=count).mean


def test_of_nothing_there_is_no_mean() -> None:
    assert Usage().mean is None


@pytest.mark.parametrize(
    ("by", "zone", "since"),
    [
        (By.HOUR, UTC, "2026-03-29T10:00:00Z"),
        (By.DAY, UTC, "2026-03-02T00:00:00Z"),
        (By.DAY, BERLIN, "2026-03-01T23:00:00Z"),
        (By.FEATURE, KATHMANDU, "2026-03-01T18:15:00Z"),
        (By.MONTH, UTC, "2025-04-01T00:00:00Z"),
    ],
)
def test_without_a_range_it_is_the_last_time_from_the_beginning_of_a_bucket(
    by: By, zone: tzinfo, since: str
) -> None:
    assert (at(since), at("2026-03-31T10:15:00Z")) == range_of(
        None, None, by=by, zone=zone, now=NOW
    )


def test_a_date_begins_where_the_zone_says() -> None:
    found = range_of("2026-03-29", "2026-03-30", by=By.DAY, zone=BERLIN, now=NOW)

    assert timedelta(hours=23) == found[1] - found[0]


def test_a_plus_that_was_not_escaped_is_one() -> None:
    start, _ = range_of("2026-03-01T01:00:00 01:00", None, by=By.DAY, zone=UTC, now=NOW)

    assert at("2026-03-01T00:00:00Z") == start


@pytest.mark.parametrize(
    ("field", "start", "end"),
    [
        ("from", "yesterday", None),
        ("from", "2026-02-30", None),
        ("from", "2026-03-01T00:00:00", None),
        ("from", "2026-03-01T00:00:01Z", None),
        ("from", "2026-03-01T00:05:00Z", None),
        ("from", "2026-03-01T00:00:00.000001Z", None),
        ("from", "1999-12-31", None),
        ("from", "2026-04-01", None),
        ("to", None, "9999-12-31T23:45:00-23:59"),
        ("to", None, "0001-01-01T00:00:00+23:59"),
        ("to", "2026-03-01", "2026-03-01"),
        ("to", "2026-03-02", "2026-03-01"),
        ("from", "٢٠٢٦-03-01", None),
    ],
)
def test_a_range_that_cannot_be_is_refused(field: str, start: str | None, end: str | None) -> None:
    with pytest.raises(InvalidRequest) as refused:
        range_of(start, end, by=By.DAY, zone=UTC, now=NOW)

    assert [field] == [each.field for each in refused.value.errors]


def test_unknown_words_are_refused() -> None:
    for work in (
        lambda: by_of("week"),
        lambda: zone_of("Mars/Olympus", lambda _: None),
        lambda: cursor_of("", By.DAY),
        lambda: cursor_of("=chat", By.DAY),
        lambda: cursor_of("0", By.FEATURE),
        lambda: cursor_of("=\0", By.FEATURE),
        lambda: cursor_of("9" * 11, By.HOUR),
    ):
        with pytest.raises(InvalidRequest):
            work()


def test_too_many_buckets_are_refused() -> None:
    start = FIRST.isoformat()
    most = (FIRST + timedelta(hours=BUCKETS_LIMIT)).isoformat()
    more = (FIRST + timedelta(hours=BUCKETS_LIMIT) + SLOT).isoformat()

    assert BUCKETS_LIMIT + 1 == len(question(By.HOUR, start, most).bounds())
    with pytest.raises(InvalidRequest):
        question(By.HOUR, start, more).bounds()


def test_days_and_months_follow_the_clocks_of_the_zone() -> None:
    days = question(By.DAY, "2026-03-28T23:00:00Z", "2026-03-30T22:00:00Z", BERLIN).bounds()
    months = question(By.MONTH, "2026-02-10T00:00:00Z", "2026-04-02T00:00:00Z", KATHMANDU).bounds()

    assert ["2026-03-28T23", "2026-03-29T22", "2026-03-30T22"] == [
        each.isoformat()[:13] for each in days
    ]
    assert ["02-10 00:00", "02-28 18:15", "03-31 18:15", "04-02 00:00"] == [
        each.strftime("%m-%d %H:%M") for each in months
    ]


def test_a_day_that_an_island_left_out_has_no_bucket() -> None:
    """Samoa went from the 29th to the 31st of December 2011."""
    zone = ZoneInfo("Pacific/Apia")
    bounds = question(By.DAY, "2011-12-29T10:00:00Z", "2011-12-31T10:00:00Z", zone).bounds()

    assert ["29", "31"] == [each.astimezone(zone).strftime("%d") for each in bounds[:-1]]


def test_every_zone_is_whole_quarters_of_an_hour_from_utc() -> None:
    """What rolling up in quarters of an hour stands on."""
    moments = [FIRST + timedelta(days=91 * number) for number in range(4 * 40)]
    odd = {
        name
        for name in available_timezones()
        for moment in moments
        if (moment.astimezone(ZoneInfo(name)).utcoffset() or timedelta()) % SLOT
    }

    assert set() == odd


def bucket(feature: str | None = None) -> Bucket:
    usage = Usage(consumed=7, purchased=9, refunded=8, count=2, transactions=4, peak_balance=11)
    return Bucket(
        start=at("2026-03-01T00:00:00Z"), end=at("2026-03-02T00:00:00Z"), usage=usage,
        feature=feature,
    )  # fmt: skip


def test_a_cursor_comes_back() -> None:
    for by, each in ((By.DAY, bucket()), (By.FEATURE, bucket("=x")), (By.FEATURE, bucket(""))):
        cursor = cursor_of(cursor_text(each), by)
        assert (each.feature, each.start if each.feature is None else None) == (
            cursor.feature,
            cursor.at,
        )


def test_csv_has_a_line_for_each_bucket() -> None:
    asked = question(zone=BERLIN)

    assert (
        b"start,end,consumed,purchased,refunded,net,count,mean,peak_balance,transactions\r\n"
        == csv_head(asked)
    )
    assert (
        b"2026-03-01T01:00:00+01:00,2026-03-02T01:00:00+01:00,7,9,8,-1,2,3.5000,11,4\r\n"
        == csv_line(bucket(), asked)
    )


@pytest.mark.parametrize(
    ("cell", "feature"),
    [
        ("chat", "chat"),
        ("", ""),
        ('"a,""b"""', 'a,"b"'),
        ("'=1+1", "=1+1"),
        ("'+1", "+1"),
        ("'-1", "-1"),
        ("'@SUM(A1)", "@SUM(A1)"),
        ("'\t=1", "\t=1"),
        ('"\'\r=1"', "\r=1"),
        ("'\uff1d1", "\uff1d1"),  # the sign in full width, which spreadsheets take, too
    ],
)
def test_no_spreadsheet_computes_a_feature(cell: str, feature: str) -> None:
    line = csv_line(bucket(feature), question(By.FEATURE)).decode()

    assert line.removeprefix("2026-03-01T00:00:00Z,2026-03-02T00:00:00Z,") == (
        f"{cell},7,9,8,-1,2,3.5000,11,4\r\n"
    )


def test_a_streamed_document_is_the_whole_page() -> None:
    import msgspec

    asked, total = question(By.FEATURE), Usage(consumed=7, count=2)
    items = [bucket("chat"), bucket("")]
    streamed = b"%s%s,%s],\"next\":null}" % (
        json_head(asked, total), json_item(items[0], asked), json_item(items[1], asked)
    )  # fmt: skip

    assert msgspec.json.encode(usage_view(asked, total, items, has_more=False)) == streamed
    assert usage_item(items[1], asked).feature is None


def test_every_kind_is_thought_of() -> None:
    """A new kind of transaction must say in the view `usage_rows` what it adds."""
    assert {
        "topup", "consume", "hold", "capture", "release", "extend", "expire", "refund", "unfreeze",
    } == set(Kind)  # fmt: skip
