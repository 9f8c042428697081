"""Usage as the API shows it: as JSON, a line each, and as CSV. Pure."""

import csv
import io
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from tollkeeper.credits.usage import (
    FEATURE_LIMIT,
    MEAN_PLACES,
    Bucket,
    By,
    Question,
    Usage,
    cursor_text,
)

FORMULA_BEGINNINGS: Final = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
"""A cell that begins so, a spreadsheet would compute (OWASP, CSV injection); the last four are the
first four in full width."""

Mean = Annotated[
    str | None,
    Meta(
        description="`consumed / count`, a decimal rounded half to even to "
        f"{MEAN_PLACES} places; null: nothing was consumed",
        examples=["12.5000"],
    ),
]
FeatureText = Annotated[
    str | None,
    Meta(
        description="`metadata.feature` of the transaction, up to "
        f"{FEATURE_LIMIT} characters; null: not said"
    ),
]
ZonedMoment = Annotated[
    str,
    Meta(description="RFC 3339, in the time zone", extra_json_schema={"format": "date-time"}),
]


class UsageTotals(msgspec.Struct):
    """What happened, in minor units."""

    consumed: Annotated[int, Meta(description="consumptions and captures")]
    purchased: Annotated[int, Meta(description="top-ups")]
    refunded: Annotated[int, Meta(description="given back; not subtracted from `consumed`")]
    net: Annotated[int, Meta(description="`consumed - refunded`")]
    count: Annotated[int, Meta(description="how many consumptions and captures")]
    mean: Mean
    peak_balance: Annotated[
        int | None,
        Meta(
            description="highest balance after a transaction, of a tenant's accounts the highest "
            "of one; null: there was no transaction"
        ),
    ]
    transactions: Annotated[int, Meta(description="how many of any kind")]


class UsageItem(UsageTotals, omit_defaults=True, kw_only=True):
    """What happened in a bucket: a part of the range, or one feature in all of it."""

    start: ZonedMoment
    end: Annotated[ZonedMoment, Meta(description="not part of it")]
    feature: FeatureText | msgspec.UnsetType = msgspec.UNSET


class UsageView(msgspec.Struct):
    """Usage of a range; `items` has the buckets with a transaction in them, and no others."""

    tenant_id: str
    account_id: Annotated[str | None, Meta(description="null: all accounts of the tenant")]
    start: Annotated[ZonedMoment, Meta(description="`from`")] = msgspec.field(name="from")
    end: Annotated[ZonedMoment, Meta(description="`to`: not part of it")] = msgspec.field(name="to")
    by: By
    time_zone: str
    totals: Annotated[UsageTotals, Meta(description="of the whole range, whatever page this is")]
    items: list[UsageItem]
    next: Annotated[
        str | None, Meta(description="send it as `after`, with the same range, for the next page")
    ]


_ENCODER = msgspec.json.Encoder()
_NAMES: Final = (
    "consumed", "purchased", "refunded", "net", "count", "mean", "peak_balance", "transactions",
)  # fmt: skip


def usage_view(
    question: Question, total: Usage, buckets: Sequence[Bucket], *, has_more: bool
) -> UsageView:
    """Return a page of usage."""
    assert question.tenant_id is not None
    return UsageView(
        tenant_id=question.tenant_id,
        account_id=question.account_id,
        start=_zoned(question.start, question),
        end=_zoned(question.end, question),
        by=question.by,
        time_zone=question.zone_name,
        totals=_totals(total),
        items=[usage_item(bucket, question) for bucket in buckets],
        next=cursor_text(buckets[-1]) if has_more else None,
    )


def usage_item(bucket: Bucket, question: Question) -> UsageItem:
    """Return a bucket."""
    totals = _totals(bucket.usage)
    feature = bucket.feature
    return UsageItem(
        **{name: getattr(totals, name) for name in _NAMES},
        start=_zoned(bucket.start, question),
        end=_zoned(bucket.end, question),
        feature=msgspec.UNSET if feature is None else feature or None,
    )


def json_head(question: Question, total: Usage) -> bytes:
    """Return a whole usage as JSON up to where its items begin."""
    text = _ENCODER.encode(usage_view(question, total, (), has_more=False))
    head, tail, rest = text.rpartition(b'"items":[')
    assert rest == JSON_TAIL
    return head + tail


JSON_TAIL: Final = b'],"next":null}'


def json_item(bucket: Bucket, question: Question) -> bytes:
    """Return a bucket as JSON."""
    return _ENCODER.encode(usage_item(bucket, question))


def csv_head(question: Question) -> bytes:
    """Return the names of the columns."""
    feature = ("feature",) if question.by is By.FEATURE else ()
    return _csv(("start", "end", *feature, *_NAMES))


def csv_line(bucket: Bucket, question: Question) -> bytes:
    """Return a bucket as a line of CSV (RFC 4180); what is null is empty."""
    totals = _totals(bucket.usage)
    feature = () if bucket.feature is None else (_safe(bucket.feature),)
    return _csv(
        (
            _zoned(bucket.start, question),
            _zoned(bucket.end, question),
            *feature,
            *(getattr(totals, name) for name in _NAMES),
        )
    )


def _csv(cells: Sequence[object]) -> bytes:
    line = io.StringIO(newline="")
    csv.writer(line).writerow(cells)
    return line.getvalue().encode()


def _safe(text: str) -> str:
    """Return text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(FORMULA_BEGINNINGS) else text


def _zoned(moment: datetime, question: Question) -> str:
    return moment.astimezone(question.zone).isoformat().replace("+00:00", "Z")


def _totals(usage: Usage) -> UsageTotals:
    return UsageTotals(
        consumed=usage.consumed, purchased=usage.purchased, refunded=usage.refunded,
        net=usage.net, count=usage.count, mean=usage.mean, peak_balance=usage.peak_balance,
        transactions=usage.transactions,
    )  # fmt: skip
