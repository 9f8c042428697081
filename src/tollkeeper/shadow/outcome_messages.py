"""Bodies and answers of assignments and outcomes, as `messages.py` has the others'. Pure.

Each body is one item, or a list of items: a list is read with `items_of`, so that a fault names its
place. A value is read as the text it was sent as: a float would round it.
"""

from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tollkeeper.shadow.model import MICRO, NAME_LIMIT, VALUE_LIMIT, OutcomeStatus, Recorded
from tollkeeper.shadow.requests import (
    AHEAD,
    ATTRIBUTES_LIMIT,
    ATTRIBUTES_LIMIT_BYTES,
    BATCH_LIMIT,
    DECIMALS,
    ID_PATTERN,
    ID_RULE,
    UNIT_RULE,
    Assigned,
    AssignmentStatus,
    AssignUnit,
    ReportedOutcome,
    attributes_fault,
    is_unit_id,
    micro_of,
    moment_fault,
)
from tollkeeper.telemetry.cards import mask_cards
from tollkeeper.web.errors import FieldFault, RequestInvalid

STATUS_NAMES = {status: status.name.lower() for status in OutcomeStatus}

ExperimentIdText = Annotated[
    str, Meta(pattern=ID_PATTERN, description=ID_RULE, examples=["checkout"])
]
UnitIdText = Annotated[
    str, Meta(min_length=1, max_length=128, description=UNIT_RULE, examples=["user-1"])
]
Scalar = str | int | float | bool | None
Attributes = Annotated[
    dict[str, Scalar] | None,
    Meta(
        description=f"what is known of the unit, kept beside its exposure: {ATTRIBUTES_LIMIT} at "
        f"most, {ATTRIBUTES_LIMIT_BYTES:,} bytes as JSON; card numbers are masked"
    ),
]
EpochNumber = Annotated[
    int,
    Meta(
        ge=1,
        le=2**31 - 1,
        description="of the weights that a client chose by, from the snapshot; left out: the "
        "service chooses by those of now",
    ),
]
PastMoment = Annotated[
    datetime,
    Meta(
        tz=True,
        description="RFC 3339 with its zone, "
        f"{AHEAD.total_seconds():g} s ahead of the service's clock at most; left out: now",
    ),
]
Value = Annotated[
    msgspec.Raw | msgspec.UnsetType,
    Meta(
        description=f"at most {DECIMALS} decimals, up to {VALUE_LIMIT:.0e} to either side; of a "
        "binary metric 0 or 1, of a count a whole number",
        extra_json_schema={"type": "number", "default": 1, "examples": [1]},
    ),
]


class AssignmentItem(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """A unit to assign."""

    unit_id: UnitIdText
    attributes: Attributes = None
    epoch: EpochNumber | None = None
    exposed_at: PastMoment | None = None


class AssignmentBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A unit to assign; or `units`, a list of them, alone."""

    unit_id: UnitIdText | None = None
    attributes: Attributes = None
    epoch: EpochNumber | None = None
    exposed_at: PastMoment | None = None
    units: Annotated[list[AssignmentItem], Meta(max_length=BATCH_LIMIT)] | None = None


class OutcomeItem(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """An outcome of a unit. The same `outcome_id` again is counted once."""

    experiment_id: ExperimentIdText
    unit_id: UnitIdText
    outcome_id: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=128,
            description=f"names the outcome within its unit: {UNIT_RULE}",
            examples=["order-2041"],
        ),
    ]
    metric: Annotated[str, Meta(min_length=1, max_length=NAME_LIMIT)] | None = None
    value: Value = msgspec.UNSET
    occurred_at: PastMoment | None = None


class OutcomeBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """An outcome of a unit, as one of a list; or `outcomes`, a list of them, alone."""

    experiment_id: ExperimentIdText | None = None
    unit_id: UnitIdText | None = None
    outcome_id: UnitIdText | None = None
    metric: Annotated[str, Meta(min_length=1, max_length=NAME_LIMIT)] | None = None
    value: Value = msgspec.UNSET
    occurred_at: PastMoment | None = None
    outcomes: Annotated[list[OutcomeItem], Meta(max_length=BATCH_LIMIT)] | None = None


class AssignmentView(msgspec.Struct, gc=False):
    """The variant that a unit gets. A unit that is assigned keeps it for ever."""

    unit_id: str
    status: Annotated[
        AssignmentStatus,
        Meta(description="all but `assigned` get the control, or what is deployed, and count not"),
    ]
    variant: str
    probability: Annotated[
        float | None, Meta(description="with which it got this variant; null: it was not assigned")
    ]
    epoch: Annotated[int | None, Meta(description="of the weights it was chosen by")]
    exposed_at: Annotated[datetime | None, Meta(description="since when: UTC")]


class OutcomeView(msgspec.Struct, gc=False):
    """What became of an outcome."""

    status: Annotated[
        Literal["counted", "waiting", "before_exposure", "outside_window"],
        Meta(
            description="waiting: its unit was not assigned yet; it is counted when it is. The "
            "last two are kept and never counted"
        ),
    ]
    duplicate: Annotated[bool, Meta(description="it was recorded before: this changed nothing")]


ProblemDocument = Annotated[
    dict[str, Annotated[object, Meta(extra_json_schema={"description": "any JSON value"})]],
    Meta(description="the problem document (RFC 9457) that it would have answered alone"),
]


class AssignmentResult(msgspec.Struct, omit_defaults=True):
    """What a unit of a list would have been answered alone."""

    status: Annotated[int, Meta(description="the HTTP status")]
    assignment: AssignmentView | None = None
    problem: ProblemDocument | None = None


class OutcomeResult(msgspec.Struct, omit_defaults=True):
    """What an outcome of a list would have been answered alone."""

    status: Annotated[int, Meta(description="the HTTP status")]
    outcome: OutcomeView | None = None
    problem: ProblemDocument | None = None


class AssignmentAnswer(msgspec.Struct, omit_defaults=True):
    """An assignment; or `results`, in the order of the units that were sent."""

    unit_id: str | None = None
    status: AssignmentStatus | None = None
    variant: str | None = None
    probability: float | None = None
    epoch: int | None = None
    exposed_at: datetime | None = None
    results: list[AssignmentResult] | None = None


class OutcomeAnswer(msgspec.Struct, omit_defaults=True):
    """What became of an outcome; or `results`, in the order of the outcomes that were sent."""

    status: Literal["counted", "waiting", "before_exposure", "outside_window"] | None = None
    duplicate: bool | None = None
    results: list[OutcomeResult] | None = None


def units_of(body: AssignmentBody, now: datetime) -> list[AssignUnit]:
    """Return the units that a body asks for: one, or those of its list.

    Raises:
        RequestInvalid: none or both, or a fault in any of them.
    """
    if body.units is not None:
        if body != AssignmentBody(units=body.units):
            raise invalid("units", "stands alone: put what is said of a unit into its item")
        return [_unit_of(item, now, f"units[{place}].") for place, item in enumerate(body.units)]
    if body.unit_id is None:
        raise invalid("unit_id", "is required, or units")
    item = AssignmentItem(body.unit_id, body.attributes, body.epoch, body.exposed_at)
    return [_unit_of(item, now, "")]


def _unit_of(item: AssignmentItem, now: datetime, place: str) -> AssignUnit:
    _check_id(f"{place}unit_id", item.unit_id)
    attributes = item.attributes
    if attributes is not None:
        attributes = {name: _kept(value) for name, value in attributes.items()}
    fault = None if attributes is None else attributes_fault(attributes)
    if fault is not None:
        raise invalid(f"{place}attributes", fault)
    return AssignUnit(
        unit_id=item.unit_id,
        attributes=None if attributes is None else msgspec.json.encode(attributes),
        epoch=item.epoch,
        exposed_at=_moment(f"{place}exposed_at", item.exposed_at, now),
    )


def outcomes_of(body: OutcomeBody, now: datetime) -> list[ReportedOutcome]:
    """Return the outcomes that a body reports: one, or those of its list.

    Raises:
        RequestInvalid: none or both, or a fault in any of them.
    """
    if body.outcomes is not None:
        if body != OutcomeBody(outcomes=body.outcomes):
            raise invalid("outcomes", "stands alone: put what is said of an outcome into its item")
        return [
            _outcome_of(item, now, f"outcomes[{place}].")
            for place, item in enumerate(body.outcomes)
        ]
    experiment_id, unit_id, outcome_id = body.experiment_id, body.unit_id, body.outcome_id
    if experiment_id is None:
        raise invalid("experiment_id", "is required, or outcomes")
    if unit_id is None:
        raise invalid("unit_id", "is required")
    if outcome_id is None:
        raise invalid("outcome_id", "is required: the same one again is counted once")
    item = OutcomeItem(
        experiment_id, unit_id, outcome_id, body.metric, body.value, body.occurred_at
    )
    return [_outcome_of(item, now, "")]


def _outcome_of(item: OutcomeItem, now: datetime, place: str) -> ReportedOutcome:
    _check_id(f"{place}unit_id", item.unit_id)
    _check_id(f"{place}outcome_id", item.outcome_id)
    value_micro = MICRO if item.value is msgspec.UNSET else micro_of(bytes(item.value))
    if value_micro is None:
        raise invalid(
            f"{place}value",
            f"must be a number with at most {DECIMALS} decimals, up to {VALUE_LIMIT:,} to either "
            "side",
        )
    return ReportedOutcome(
        experiment_id=item.experiment_id,
        unit_id=item.unit_id,
        outcome_id=item.outcome_id,
        metric=item.metric,
        value_micro=value_micro,
        occurred_at=_moment(f"{place}occurred_at", item.occurred_at, now),
    )


def assignment_view(assigned: Assigned) -> AssignmentView:
    """Return an assignment as the API shows it."""
    exposed_at = assigned.exposed_at
    return AssignmentView(
        assigned.unit_id, assigned.status, assigned.variant, assigned.probability, assigned.epoch,
        None if exposed_at is None else exposed_at.astimezone(UTC),
    )  # fmt: skip


def outcome_view(recorded: Recorded) -> OutcomeView:
    """Return what became of an outcome as the API shows it."""
    return OutcomeView(STATUS_NAMES[recorded.status], not recorded.is_new)  # type: ignore[arg-type]  # the names are those of the enum


def invalid(field: str, detail: str) -> RequestInvalid:
    """Return the error that names one field."""
    return RequestInvalid(errors=(FieldFault(field=field, detail=detail),))


def _kept(value: Scalar) -> Scalar:
    return mask_cards(value) if isinstance(value, str) else value


def _check_id(field: str, text: str) -> None:
    if not is_unit_id(text):
        raise invalid(field, f"must be {UNIT_RULE}, without NUL")


def _moment(field: str, moment: datetime | None, now: datetime) -> datetime | None:
    if moment is None:
        return None
    fault = moment_fault(moment, now)
    if fault is not None:
        raise invalid(field, fault)
    return moment.astimezone(UTC)
