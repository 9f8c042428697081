"""Values of the shadow service: what an experiment is, and what happens in it.

A definition is checked when it is made: whatever is one, can run. Values of outcomes are whole
micro-units, so that sums of any number of them are exact.

Invariant: `msgspec.json` writes and reads a `Definition` without loss; the database keeps that.
"""

import math
from collections.abc import Mapping
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Final, NewType
from uuid import UUID

import msgspec

from tollkeeper.kernel.ids import TenantId
from tollkeeper.shadow.errors import DefinitionInvalid, MetricUnknown, VariantUnknown

ExperimentId = NewType("ExperimentId", str)

MICRO: Final = 1_000_000
"""Micro-units in one unit of a metric."""

VALUE_LIMIT: Final = 10**12
"""Largest value of an outcome, in the metric's own unit, to either side."""

VARIANTS_LIMIT: Final = 50
METRICS_LIMIT: Final = 20
LOOKS_LIMIT: Final = 1_000
UNITS_LIMIT: Final = 10**10
WINDOW_LIMIT_S: Final = 90 * 86_400
"""Longest attribution window: ninety days."""

NAME_LIMIT: Final = 100
"""Characters of a name of a variant, a metric, a group or a namespace."""

ID_LIMIT: Final = 128
"""Bytes of the id of an experiment, a unit or an outcome."""

WEIGHT_TOLERANCE: Final = 1e-9
"""How far a sum of weights may be from 1: they are decimals that somebody wrote."""

BUCKETS_OF_WINDOW: Final = 50
"""Exposures are counted in buckets of time, so many to the shortest window."""


class MetricKind(StrEnum):
    """What a unit's value is, and so which family its posterior is of."""

    BINARY = "binary"
    """0 or 1: Beta-Bernoulli."""
    COUNT = "count"
    """A whole number: Gamma-Poisson."""
    CONTINUOUS = "continuous"
    """Any number, as latency or revenue: Normal-inverse-gamma."""


class Direction(StrEnum):
    """Which values of a metric are better."""

    HIGHER = "higher"
    LOWER = "lower"

    @property
    def sign(self) -> int:
        """What the metric is multiplied with so that higher is better."""
        return 1 if self is Direction.HIGHER else -1


class PerUnit(StrEnum):
    """How several outcomes of a unit become its value."""

    MAX = "max"
    SUM = "sum"
    MEAN = "mean"


class Missing(StrEnum):
    """What a unit without an outcome is."""

    EXCLUDE = "exclude"
    """Nothing: a unit counts from its first outcome on."""
    ZERO = "zero"
    """A zero, once its window has closed; no unit counts before."""


class ExperimentState(StrEnum):
    """What an experiment does."""

    DRAFT = "draft"
    """It is being defined."""
    RUNNING = "running"
    PAUSED = "paused"
    """Who was assigned keeps the variant; nobody else is assigned."""
    ENDED = "ended"
    """Everybody gets the control, or what was deployed."""


class OutcomeStatus(IntEnum):
    """What became of an outcome."""

    WAITING = 0
    """Its unit was not assigned yet."""
    COUNTED = 1
    BEFORE_EXPOSURE = 2
    """It happened too long before the unit was assigned; not counted."""
    OUTSIDE_WINDOW = 3
    """It happened after the attribution window; not counted."""


class Verdict(StrEnum):
    """What the gate says."""

    DEPLOY = "deploy"
    HOLD = "hold"
    REJECT = "reject"


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """An arm, and its share of the units at the start."""

    name: str
    weight: float

    def __post_init__(self) -> None:
        _check_name("variants[].name", self.name)
        if not 0 <= self.weight <= 1:
            _refuse("variants[].weight", "must be 0 to 1")


class Metric(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is measured of a unit. `prior` is of its kind's family; empty: the family's default.

    A prior is `alpha, beta` of a Beta, `shape, rate` of a Gamma, or `mean, kappa, alpha, beta` of
    a Normal-inverse-gamma. `tolerance` is of guardrails: by how much, relative to the control, a
    variant may be worse.
    """

    name: str
    kind: MetricKind
    direction: Direction = Direction.HIGHER
    missing: Missing = Missing.EXCLUDE
    window_s: int = 3_600
    per_unit: PerUnit | None = None
    prior: tuple[float, ...] = ()
    tolerance: float = 0.02

    def __post_init__(self) -> None:
        _check_name("metrics[].name", self.name)
        if not 1 <= self.window_s <= WINDOW_LIMIT_S:
            _refuse("metrics[].window_s", f"must be 1 to {WINDOW_LIMIT_S} seconds")
        allowed = _PER_UNIT[self.kind]
        if self.per_unit is not None and self.per_unit not in allowed:
            names = " or ".join(allowed)
            _refuse("metrics[].per_unit", f"of a {self.kind} metric must be {names}")
        if not 0 <= self.tolerance <= 1:
            _refuse("metrics[].tolerance", "must be 0 to 1")
        if self.prior:
            _check_prior(self.kind, self.prior)

    @property
    def unit_value(self) -> PerUnit:
        """How several outcomes of a unit become its value."""
        return self.per_unit or _PER_UNIT[self.kind][0]


class Adaptive(msgspec.Struct, frozen=True, kw_only=True):
    """Weights follow the evidence: a Thompson bandit that changes them at each look.

    `floor` is every variant's least share; `discount` what evidence of an epoch is worth in the
    next one: 1 forgets nothing.
    """

    floor: float = 0.05
    top_two: bool = False
    discount: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.floor <= 0.5:
            _refuse("adaptive.floor", "must be 0 to 0.5")
        if not 0 < self.discount <= 1:
            _refuse("adaptive.discount", "must be above 0, and 1 at most")


class Holdout(msgspec.Struct, frozen=True, kw_only=True):
    """A share of all units that experiments of this group leave alone: always the same units."""

    group: str
    share: float

    def __post_init__(self) -> None:
        _check_name("holdout.group", self.group)
        if not 0 < self.share <= 0.5:
            _refuse("holdout.share", "must be above 0, and 0.5 at most")


class Namespace(msgspec.Struct, frozen=True, kw_only=True):
    """Mutual exclusion: units from `start` to `end` (not part of it) of a namespace take part."""

    name: str
    start: float
    end: float

    def __post_init__(self) -> None:
        _check_name("namespace.name", self.name)
        if not 0 <= self.start < self.end <= 1:
            _refuse("namespace", "must have 0 <= start < end <= 1")


class Definition(msgspec.Struct, frozen=True, kw_only=True):
    """What an experiment is; the first metric decides, others are guardrails.

    `units` and `looks` are the plan: after so many counted units, and so many evaluations, all is
    said; `looks` is None for profiles that plan none. `margin` is the least relative lift that is
    worth a deployment.
    """

    variants: tuple[Variant, ...]
    control: str
    metrics: tuple[Metric, ...]
    units: int = 10_000
    looks: int | None = 50
    margin: float = 0.05
    profile: str = "default@1"
    adaptive: Adaptive | None = None
    holdout: Holdout | None = None
    namespace: Namespace | None = None
    early_s: int = 3_600
    description: str = ""

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        if not 2 <= len(names) <= VARIANTS_LIMIT:
            _refuse("variants", f"must be 2 to {VARIANTS_LIMIT}")
        if len(set(names)) < len(names):
            _refuse("variants", "must have different names")
        total = math.fsum(variant.weight for variant in self.variants)
        if abs(total - 1) > WEIGHT_TOLERANCE:
            _refuse("variants", f"must have weights that sum to 1, not to {total:g}")
        if self.control not in names:
            _refuse("control", f"must be one of the variants: {', '.join(names)}")
        metrics = [metric.name for metric in self.metrics]
        if not 1 <= len(metrics) <= METRICS_LIMIT:
            _refuse("metrics", f"must be 1 to {METRICS_LIMIT}")
        if len(set(metrics)) < len(metrics):
            _refuse("metrics", "must have different names")
        self._check_plan()

    def _check_plan(self) -> None:
        if not 1 <= self.units <= UNITS_LIMIT:
            _refuse("units", f"must be 1 to {UNITS_LIMIT}")
        if self.looks is not None and not 1 <= self.looks <= min(LOOKS_LIMIT, self.units):
            _refuse("looks", f"must be 1 to {LOOKS_LIMIT}, and not more than units")
        if not 0 <= self.margin <= 1:
            _refuse("margin", "must be 0 to 1: 0.05 is 5 %")
        if self.adaptive is not None and self.adaptive.floor * len(self.variants) > 1:
            _refuse("adaptive.floor", "must leave something: floor times variants is 1 at most")
        if not 0 <= self.early_s <= WINDOW_LIMIT_S:
            _refuse("early_s", f"must be 0 to {WINDOW_LIMIT_S} seconds")
        if len(self.description) > 1_000 or not is_storable(self.description):
            _refuse("description", "must be at most 1000 characters")

    @property
    def names(self) -> tuple[str, ...]:
        """The variants' names, in order."""
        return tuple(variant.name for variant in self.variants)

    @property
    def weights(self) -> tuple[float, ...]:
        """The variants' shares at the start."""
        return tuple(variant.weight for variant in self.variants)

    @property
    def control_no(self) -> int:
        """The control's number."""
        return self.names.index(self.control)

    @property
    def bucket_s(self) -> int:
        """Width of the buckets of time in which exposures are counted, in seconds."""
        shortest = min(metric.window_s for metric in self.metrics)
        return max(1, shortest // BUCKETS_OF_WINDOW)

    def variant_no(self, experiment_id: str, name: str) -> int:
        """Return a variant's number.

        Raises:
            VariantUnknown: there is none of this name.
        """
        if name not in self.names:
            raise VariantUnknown(experiment_id=experiment_id, variant=name, known=self.names)
        return self.names.index(name)

    def metric_no(self, experiment_id: str, name: str | None) -> int:
        """Return a metric's number; None stands for the first one.

        Raises:
            MetricUnknown: there is none of this name.
        """
        if name is None:
            return 0
        for number, metric in enumerate(self.metrics):
            if metric.name == name:
                return number
        known = tuple(metric.name for metric in self.metrics)
        raise MetricUnknown(experiment_id=experiment_id, metric=name, known=known)


class Epoch(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of constant weights; the first one is 1."""

    epoch: int
    begun_at: datetime
    weights: tuple[float, ...]


class Experiment(msgspec.Struct, frozen=True, kw_only=True):
    """An experiment as it is kept; `version` moves with every change, epochs included."""

    experiment_no: int
    experiment_id: ExperimentId
    tenant_id: TenantId
    definition: Definition
    state: ExperimentState
    version: int
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    epochs: tuple[Epoch, ...] = ()
    deployed_no: int | None = None
    """The variant that everybody gets: deployed, and not rolled back."""

    @property
    def weights(self) -> tuple[float, ...]:
        """The shares that new units are assigned with."""
        return self.epochs[-1].weights if self.epochs else self.definition.weights


class Expose(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A unit is to get a variant; the first exposure of a unit stands for ever."""

    experiment_no: int
    unit_id: str
    shard: int
    variant_no: int
    epoch: int
    probability: float
    exposed_at: datetime | None = None
    """None: when it is recorded, by the database's clock."""
    attributes: bytes | None = None
    """JSON, kept as it is."""


class Record(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An outcome is to be counted, once."""

    experiment_no: int
    unit_id: str
    shard: int
    outcome_id: str
    metric_no: int
    value_micro: int
    occurred_at: datetime | None = None
    """None: when it is recorded, by the database's clock."""


Request = Expose | Record


class Exposed(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The variant that a unit has, and the probability with which it got it."""

    variant_no: int
    epoch: int
    probability: float
    exposed_at: datetime
    is_new: bool


class Recorded(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An outcome is kept; `is_new` is false when it was before."""

    status: OutcomeStatus
    is_new: bool


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """A stored evaluation; `document` can be computed anew from `inputs`, `seed` and `code`."""

    decision_no: int
    experiment_no: int
    sequence: int
    kind: str
    """`look` or `confirmation`."""
    look: int
    decided_at: datetime
    as_of: datetime
    expires_at: datetime | None
    verdict: Verdict
    variant_no: int | None
    input_digest: bytes
    inputs: str
    seed: int
    code: str
    document: str
    prev_hash: bytes
    hash: bytes


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """A variant that everybody gets, until it is rolled back."""

    deployment_id: UUID
    experiment_no: int
    experiment_id: ExperimentId
    tenant_id: TenantId
    variant_no: int
    decision_no: int
    input_digest: bytes
    deployed_at: datetime
    deployed_by: str
    rolled_back_at: datetime | None = None
    rolled_back_by: str | None = None
    reason: str | None = None


def is_storable(text: str) -> bool:
    """Whether PostgreSQL can hold a text: no NUL, no half of a surrogate pair."""
    return not any(character == "\0" or "\ud800" <= character <= "\udfff" for character in text)


def is_id(text: str) -> bool:
    """Whether a text can be the id of an experiment, a unit or an outcome."""
    return is_storable(text) and 1 <= len(text.encode()) <= ID_LIMIT


_PER_UNIT: Final[Mapping[MetricKind, tuple[PerUnit, ...]]] = {
    MetricKind.BINARY: (PerUnit.MAX,),
    MetricKind.COUNT: (PerUnit.SUM, PerUnit.MAX),
    MetricKind.CONTINUOUS: (PerUnit.MEAN, PerUnit.SUM, PerUnit.MAX),
}
_PRIORS: Final[Mapping[MetricKind, tuple[str, ...]]] = {
    MetricKind.BINARY: ("alpha", "beta"),
    MetricKind.COUNT: ("shape", "rate"),
    MetricKind.CONTINUOUS: ("mean", "kappa", "alpha", "beta"),
}


def _check_prior(kind: MetricKind, prior: tuple[float, ...]) -> None:
    names = _PRIORS[kind]
    if len(prior) != len(names):
        _refuse("metrics[].prior", f"of a {kind} metric must be {', '.join(names)}")
    for name, value in zip(names, prior, strict=True):
        if not math.isfinite(value) or abs(value) > VALUE_LIMIT:
            _refuse("metrics[].prior", f"must have a finite {name}, up to {VALUE_LIMIT}")
        if name != "mean" and value <= 0:
            _refuse("metrics[].prior", f"must have {name} above 0")


def _check_name(field: str, text: str) -> None:
    if not 1 <= len(text) <= NAME_LIMIT or not is_storable(text) or text != text.strip():
        _refuse(field, f"must be 1 to {NAME_LIMIT} characters, without spaces around")


def _refuse(field: str, fault: str) -> None:
    raise DefinitionInvalid(field=field, fault=fault)
