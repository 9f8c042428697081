"""Bodies and answers of alerts, as `messages.py` has the others'. Pure."""

from collections import Counter
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tollkeeper.credits import requests
from tollkeeper.credits.alert_model import (
    THRESHOLDS_LIMIT,
    Alert,
    AlertState,
    ShownThreshold,
    Threshold,
)
from tollkeeper.credits.alerts import HYSTERESIS_SHARE, default_hysteresis
from tollkeeper.credits.errors import FieldProblem, InvalidRequest
from tollkeeper.credits.messages import MinorUnits, Moment, TransactionIdText, iso
from tollkeeper.credits.model import Account
from tollkeeper.kernel.amounts import MAX_AMOUNT_MINOR

OptionalMoment = Annotated[
    str | None, Meta(description="UTC, RFC 3339", extra_json_schema={"format": "date-time"})
]


class ThresholdItem(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A threshold to set."""

    threshold: Annotated[
        int,
        Meta(
            ge=1,
            le=MAX_AMOUNT_MINOR,
            description="an alert fires when less than this is available, in minor units",
            examples=[1_000],
        ),
    ]
    hysteresis: (
        Annotated[
            int,
            Meta(
                ge=0,
                le=MAX_AMOUNT_MINOR,
                description="it is armed again when so much more than the threshold is available; "
                f"left out: a {HYSTERESIS_SHARE}th of the threshold, at least 1",
            ),
        ]
        | None
    ) = None


class AlertsBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """All thresholds that the account shall have; none: it has no alerts any more."""

    alerts: Annotated[list[ThresholdItem], Meta(max_length=THRESHOLDS_LIMIT)]


class AcknowledgementBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What is said about it."""

    note: (
        Annotated[
            str,
            Meta(
                description=f"1 to {requests.DESCRIPTION_LIMIT} characters; card numbers in it "
                "are masked"
            ),
        ]
        | None
    ) = None


class ThresholdView(msgspec.Struct):
    """A threshold of an account."""

    threshold: MinorUnits
    hysteresis: MinorUnits
    state: Annotated[
        Literal["armed", "fired"],
        Meta(description="fired: until `threshold + hysteresis` is available again"),
    ]
    last_alert_id: Annotated[
        str | None, Meta(description="what it fired last; null: nothing since it was set")
    ]
    last_fired_at: OptionalMoment


class AccountAlertsView(msgspec.Struct):
    """The thresholds of an account, lowest first."""

    account_id: str
    available: MinorUnits
    alerts: list[ThresholdView]


class AlertView(msgspec.Struct):
    """An alert that fired."""

    alert_id: TransactionIdText
    account_id: str
    tenant_id: str
    state: Annotated[
        AlertState,
        Meta(description="rearmed: enough is available again, or its threshold was taken away"),
    ]
    threshold: MinorUnits
    hysteresis: MinorUnits
    available: Annotated[int, Meta(description="minor units, when it fired")]
    sequence: Annotated[
        int,
        Meta(
            description="the transaction that crossed the threshold; without its id: the account's "
            "version when it was found below, as when a threshold is set"
        ),
    ]
    transaction_id: Annotated[str | None, Meta(description="the transaction that crossed")]
    fired_at: Moment
    rearmed_at: OptionalMoment
    rearmed_sequence: Annotated[
        int | None,
        Meta(description="the transaction that re-armed; null: none, or the threshold is gone"),
    ]
    acknowledged_at: OptionalMoment
    acknowledged_by: Annotated[str | None, Meta(description="id of the API key")]
    note: str | None


class AlertsPage(msgspec.Struct):
    """Alerts, oldest first; `next` is null on the last page."""

    items: list[AlertView]
    next: Annotated[str | None, Meta(description="send it as `after` for the next page")]


def thresholds_of(body: AlertsBody) -> tuple[Threshold, ...]:
    """Return the thresholds that a body asks for.

    Raises:
        InvalidRequest: one stands there twice, or could never be armed again.
    """
    faults, counted = [], Counter[int]()
    for place, item in enumerate(body.alerts):
        counted[item.threshold] += 1
        if counted[item.threshold] > 1:
            faults.append(FieldProblem(field=f"alerts[{place}].threshold", detail="is there twice"))
        if item.threshold + (item.hysteresis or 0) > MAX_AMOUNT_MINOR:
            detail = f"with the threshold at most {MAX_AMOUNT_MINOR}"
            faults.append(FieldProblem(field=f"alerts[{place}].hysteresis", detail=detail))
    if faults:
        raise InvalidRequest(errors=tuple(faults))
    return tuple(
        Threshold(
            threshold=item.threshold,
            hysteresis=default_hysteresis(item.threshold)
            if item.hysteresis is None
            else item.hysteresis,
        )
        for item in body.alerts
    )


def account_alerts_view(
    account: Account, thresholds: tuple[ShownThreshold, ...]
) -> AccountAlertsView:
    """Return the thresholds of an account as the API shows them."""
    return AccountAlertsView(
        account.account_id, account.available, [_threshold_view(each) for each in thresholds]
    )


def _threshold_view(shown: ShownThreshold) -> ThresholdView:
    threshold = shown.threshold
    return ThresholdView(
        threshold=threshold.threshold,
        hysteresis=threshold.hysteresis,
        state="armed" if threshold.armed else "fired",
        last_alert_id=None if threshold.last_alert is None else str(threshold.last_alert),
        last_fired_at=None if shown.fired_at is None else iso(shown.fired_at),
    )


def alert_view(alert: Alert) -> AlertView:
    """Return an alert as the API shows it."""
    rearmed, acknowledged = alert.rearmed_at, alert.acknowledged_at
    return AlertView(
        alert_id=str(alert.alert_id), account_id=alert.account_id, tenant_id=alert.tenant_id,
        state=alert.state, threshold=alert.threshold, hysteresis=alert.hysteresis,
        available=alert.available, sequence=alert.sequence,
        transaction_id=None if alert.transaction_id is None else str(alert.transaction_id),
        fired_at=iso(alert.fired_at), rearmed_at=None if rearmed is None else iso(rearmed),
        rearmed_sequence=alert.rearmed_sequence,
        acknowledged_at=None if acknowledged is None else iso(acknowledged),
        acknowledged_by=None if alert.acknowledged_by is None else str(alert.acknowledged_by),
        note=alert.note,
    )  # fmt: skip
