"""Bodies of experiments: what may be asked of one, and the definition or change it becomes.

What a body must be is said once, here: the structs decode the bodies, and the OpenAPI document is
made from them. What makes a definition possible is judged by `model.py`; how experiments are
shown is in `views.py`. Pure.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from tollkeeper.shadow.errors import DefinitionInvalid
from tollkeeper.shadow.model import (
    LOOKS_LIMIT,
    METRICS_LIMIT,
    NAME_LIMIT,
    UNITS_LIMIT,
    VARIANTS_LIMIT,
    WINDOW_LIMIT_S,
    Adaptive,
    Definition,
    Direction,
    Experiment,
    ExperimentState,
    Holdout,
    Metric,
    MetricKind,
    Missing,
    Namespace,
    PerUnit,
    Variant,
)
from tollkeeper.shadow.profiles import PROFILES
from tollkeeper.shadow.requests import ID_PATTERN, ID_RULE, Change
from tollkeeper.telemetry.cards import mask_cards

LOOKS_DEFAULT = 50
"""Planned looks, where the profile plans any."""

_Value = TypeVar("_Value")

ExperimentIdText = Annotated[
    str, Meta(pattern=ID_PATTERN, description=ID_RULE, examples=["checkout"])
]
TenantIdText = Annotated[str, Meta(pattern=ID_PATTERN, description=ID_RULE, examples=["acme"])]
Name = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=NAME_LIMIT,
        description=f"1 to {NAME_LIMIT} characters, without spaces around",
    ),
]
Share = Annotated[float, Meta(ge=0, le=1)]
Seconds = Annotated[int, Meta(ge=0, le=WINDOW_LIMIT_S, description="seconds")]
Plan = Annotated[
    int,
    Meta(ge=1, le=UNITS_LIMIT, description="counted units after which all is said"),
]
Looks = Annotated[
    int | None,
    Meta(
        description="planned evaluations, 1 to "
        f"{LOOKS_LIMIT}: only they decide. null: none is planned, for a profile that plans none",
    ),
]
Margin = Annotated[
    float,
    Meta(ge=0, le=1, description="least lift, relative to the control, that is worth a deployment"),
]
Profile = Annotated[
    str,
    Meta(
        max_length=NAME_LIMIT, description="of the gate: name and version", examples=["default@1"]
    ),
]


Description = Annotated[
    str, Meta(max_length=1_000, description="at most 1,000 characters; card numbers are masked")
]


class VariantItem(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A variant of the experiment."""

    name: Name
    weight: (
        Annotated[
            float,
            Meta(ge=0, le=1, description="its share of the units; of all variants or of none"),
        ]
        | None
    ) = None


class MetricItem(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What is measured of a unit."""

    name: Name
    kind: MetricKind
    direction: Annotated[Direction, Meta(description="which values are better")] = Direction.HIGHER
    missing: Annotated[
        Missing,
        Meta(
            description="a unit without an outcome: `exclude` does not count it, `zero` counts it "
            "as 0 once its window is over"
        ),
    ] = Missing.EXCLUDE
    window_s: Annotated[
        int,
        Meta(
            ge=1,
            le=WINDOW_LIMIT_S,
            description="seconds after its assignment in which outcomes of a unit count",
        ),
    ] = 3_600
    per_unit: (
        Annotated[
            PerUnit,
            Meta(
                description="how outcomes of a unit become its value; left out: max of a binary "
                "metric, sum of a count, mean of a continuous one"
            ),
        ]
        | None
    ) = None
    prior: (
        Annotated[
            list[float],
            Meta(
                max_length=4,
                description="binary: alpha, beta; count: shape, rate; continuous: mean, kappa, "
                "alpha, beta; left out: one that says little",
            ),
        ]
        | None
    ) = None
    tolerance: Annotated[
        float,
        Meta(
            ge=0, le=1, description="of a guardrail: by how much, relatively, it may become worse"
        ),
    ] = 0.02


class AdaptiveItem(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Weights follow the evidence, and change at each look."""

    floor: Annotated[float, Meta(ge=0, le=0.5, description="least share of a variant")] = 0.05
    top_two: Annotated[bool, Meta(description="explore the second best, too")] = False
    discount: Annotated[
        float,
        Meta(gt=0, le=1, description="what evidence is worth an epoch later; 1: nothing is lost"),
    ] = 1.0


class HoldoutItem(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Units that all experiments of a group leave alone."""

    group: Name
    share: Annotated[float, Meta(gt=0, le=0.5)]


class NamespaceItem(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The experiment's part of a namespace: parts of two running experiments never overlap."""

    name: Name
    start: Share
    end: Share


class ExperimentBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """An experiment to create."""

    experiment_id: ExperimentIdText
    variants: Annotated[list[VariantItem], Meta(min_length=2, max_length=VARIANTS_LIMIT)]
    metrics: Annotated[
        list[MetricItem],
        Meta(
            min_length=1,
            max_length=METRICS_LIMIT,
            description="the first one decides, the others are guardrails",
        ),
    ]
    tenant_id: (
        Annotated[
            str,
            Meta(pattern=ID_PATTERN, description="left out: the key's tenant", examples=["acme"]),
        ]
        | None
    ) = None
    control: Name | None = None
    units: Plan = 10_000
    looks: Looks | UnsetType = UNSET
    margin: Margin = 0.05
    profile: Profile = "default@1"
    adaptive: AdaptiveItem | None = None
    holdout: HoldoutItem | None = None
    namespace: NamespaceItem | None = None
    early_s: Annotated[
        int,
        Meta(
            ge=0,
            le=WINDOW_LIMIT_S,
            description="seconds that an outcome may be earlier than its unit's assignment",
        ),
    ] = 3_600
    description: Description = ""
    state: Annotated[
        Literal["draft", "running"], Meta(description="running: it starts at once")
    ] = "draft"


class ChangeBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What shall be different. Members of the definition change in a draft only."""

    state: ExperimentState | UnsetType = UNSET
    weights: (
        Annotated[
            dict[str, Share],
            Meta(
                max_length=VARIANTS_LIMIT,
                description="a share for every variant, by name; they sum to 1, and begin an epoch",
            ),
        ]
        | UnsetType
    ) = UNSET
    variants: (
        Annotated[list[VariantItem], Meta(min_length=2, max_length=VARIANTS_LIMIT)] | UnsetType
    ) = UNSET
    metrics: (
        Annotated[list[MetricItem], Meta(min_length=1, max_length=METRICS_LIMIT)] | UnsetType
    ) = UNSET
    control: Name | UnsetType = UNSET
    units: Plan | UnsetType = UNSET
    looks: Looks | UnsetType = UNSET
    margin: Margin | UnsetType = UNSET
    profile: Profile | UnsetType = UNSET
    adaptive: AdaptiveItem | UnsetType | None = UNSET
    holdout: HoldoutItem | UnsetType | None = UNSET
    namespace: NamespaceItem | UnsetType | None = UNSET
    early_s: Seconds | UnsetType = UNSET
    description: Description | UnsetType = UNSET

    @property
    def redefines(self) -> bool:
        """Whether a member of the definition is there."""
        return any(
            getattr(self, name) is not UNSET
            for name in self.__struct_fields__
            if name not in {"state", "weights"}
        )


def definition_of(body: ExperimentBody) -> Definition:
    """Return the definition that a body asks for.

    Raises:
        DefinitionInvalid: it cannot be; the field is named.
    """
    looks = body.looks
    if looks is UNSET:
        profile = PROFILES.get(body.profile)
        is_planned = profile is None or profile.plans_looks
        looks = min(LOOKS_DEFAULT, body.units) if is_planned else None
    variants = _variants_of(body.variants)
    return Definition(
        variants=variants,
        control=body.control or variants[0].name,
        metrics=tuple(_metric_of(item) for item in body.metrics),
        units=body.units,
        looks=looks,
        margin=body.margin,
        profile=body.profile,
        adaptive=_converted(body.adaptive, Adaptive),
        holdout=_converted(body.holdout, Holdout),
        namespace=_converted(body.namespace, Namespace),
        early_s=body.early_s,
        description=mask_cards(body.description),
    )


def redefined(body: ChangeBody, now: Definition) -> Definition:
    """Return a definition with what a body changes.

    Raises:
        DefinitionInvalid: it cannot be; the field is named.
    """
    variants, control = now.variants, _given(body.control, now.control)
    if body.variants is not UNSET:
        variants = _variants_of(body.variants)
        if body.control is UNSET and control not in {variant.name for variant in variants}:
            control = variants[0].name
    metrics = now.metrics
    if body.metrics is not UNSET:
        metrics = tuple(_metric_of(item) for item in body.metrics)
    adaptive, holdout, namespace = now.adaptive, now.holdout, now.namespace
    if body.adaptive is not UNSET:
        adaptive = _converted(body.adaptive, Adaptive)
    if body.holdout is not UNSET:
        holdout = _converted(body.holdout, Holdout)
    if body.namespace is not UNSET:
        namespace = _converted(body.namespace, Namespace)
    return Definition(
        variants=variants,
        control=control,
        metrics=metrics,
        units=_given(body.units, now.units),
        looks=_given(body.looks, now.looks),
        margin=_given(body.margin, now.margin),
        profile=_given(body.profile, now.profile),
        adaptive=adaptive,
        holdout=holdout,
        namespace=namespace,
        early_s=_given(body.early_s, now.early_s),
        description=mask_cards(_given(body.description, now.description)),
    )


def change_of(body: ChangeBody, now: Experiment | None) -> Change:
    """Return the change that a body asks for; `now` is needed when it redefines.

    Raises:
        DefinitionInvalid: the definition cannot be; the field is named.
    """
    definition = None
    if body.redefines:
        assert now is not None
        definition = redefined(body, now.definition)
    return Change(
        state=None if body.state is UNSET else body.state,
        definition=definition,
        weights=None if body.weights is UNSET else body.weights,
        version=None if definition is None or now is None else now.version,
    )


def _variants_of(items: Sequence[VariantItem]) -> tuple[Variant, ...]:
    """Return the variants; without any weight all have the same share."""
    given = [item.weight for item in items if item.weight is not None]
    if given and len(given) < len(items):
        raise DefinitionInvalid(
            field="variants", fault="must all have a weight, or none: then all have the same"
        )
    return tuple(
        Variant(name=item.name, weight=1 / len(items) if item.weight is None else item.weight)
        for item in items
    )


def _metric_of(item: MetricItem) -> Metric:
    return Metric(
        name=item.name,
        kind=item.kind,
        direction=item.direction,
        missing=item.missing,
        window_s=item.window_s,
        per_unit=item.per_unit,
        prior=tuple(item.prior or ()),
        tolerance=item.tolerance,
    )


def _converted(item: msgspec.Struct | None, kind: type[_Value]) -> _Value | None:
    return None if item is None else kind(**msgspec.structs.asdict(item))


def _given(value: _Value | UnsetType, otherwise: _Value) -> _Value:
    return otherwise if value is UNSET else value
