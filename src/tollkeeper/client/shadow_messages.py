"""What the shadow service says and is told, as callers see it; unknown members are left out.

Values only: what they mean is in the guide, and what a definition must be the service judges.
"""

from datetime import datetime
from decimal import Decimal
from typing import Literal, TypedDict

import msgspec

from tollkeeper.client.messages import Problem


class VariantFields(TypedDict, total=False):
    """A variant of a definition; all of them have a `weight`, or none."""

    name: str
    weight: float


class MetricFields(TypedDict, total=False):
    """A metric of a definition; `name` and `kind` are required."""

    name: str
    kind: Literal["binary", "count", "continuous"]
    direction: Literal["higher", "lower"]
    missing: Literal["exclude", "zero"]
    window_s: int
    per_unit: Literal["max", "sum", "mean"]
    prior: list[float]
    tolerance: float


class DefinitionFields(TypedDict, total=False):
    """What an experiment is; `variants` and `metrics` are required to create one."""

    variants: list[VariantFields]
    metrics: list[MetricFields]
    control: str
    units: int
    looks: int | None
    margin: float
    profile: str
    adaptive: dict[str, object] | None
    holdout: dict[str, object] | None
    namespace: dict[str, object] | None
    early_s: int
    description: str


class Share(msgspec.Struct, frozen=True):
    """A variant, and its share of the units that are assigned now."""

    name: str
    weight: float


class MetricOf(msgspec.Struct, frozen=True, kw_only=True):
    """What is measured of a unit; the first metric of an experiment decides."""

    name: str
    kind: str
    direction: str
    missing: str
    window_s: int
    per_unit: str
    prior: tuple[float, ...] | None = None
    tolerance: float = 0.0


class AdaptiveTerms(msgspec.Struct, frozen=True, kw_only=True):
    """How weights follow the evidence."""

    floor: float
    top_two: bool = False
    discount: float = 1.0


class HoldoutTerms(msgspec.Struct, frozen=True, kw_only=True):
    """A share of all units that experiments of a group leave alone."""

    group: str
    share: float


class NamespaceTerms(msgspec.Struct, frozen=True, kw_only=True):
    """The experiment's part of a namespace."""

    name: str
    start: float
    end: float


class Experiment(msgspec.Struct, frozen=True, kw_only=True):
    """An experiment as it stands; `state` is draft, running, paused or ended."""

    experiment_id: str
    tenant_id: str
    state: str
    version: int
    variants: tuple[Share, ...]
    control: str
    metrics: tuple[MetricOf, ...]
    units: int
    looks: int | None
    margin: float
    profile: str
    created_at: datetime
    description: str = ""
    adaptive: AdaptiveTerms | None = None
    holdout: HoldoutTerms | None = None
    namespace: NamespaceTerms | None = None
    early_s: int = 0
    epoch: int | None = None
    deployed: str | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None


class CreatedExperiment(msgspec.Struct, frozen=True):
    """An experiment, and whether it was made by this call: it may have been there, alike."""

    experiment: Experiment
    is_new: bool


class ExperimentPage(msgspec.Struct, frozen=True):
    """A page of experiments, oldest first; `next` is the cursor of the page after it."""

    items: tuple[Experiment, ...]
    next: str | None = None


class Unit(msgspec.Struct, frozen=True, omit_defaults=True):
    """A unit to assign; `epoch` and `exposed_at` are of a choice made in one's own process."""

    unit_id: str
    attributes: dict[str, str | int | float | bool | None] | None = None
    epoch: int | None = None
    exposed_at: datetime | None = None


class Assignment(msgspec.Struct, frozen=True):
    """The variant a unit gets.

    Of an `assigned` unit everything is there; with another status (held_out, excluded, paused,
    ended, deployed) it counts for nothing.
    """

    unit_id: str
    status: str
    variant: str
    probability: float | None = None
    epoch: int | None = None
    exposed_at: datetime | None = None


class AssignmentResult(msgspec.Struct, frozen=True):
    """What became of one unit of a batch: an assignment, or the problem."""

    status: int
    assignment: Assignment | None = None
    problem: Problem | None = None


class AssignmentAnswer(msgspec.Struct, frozen=True):
    """The results of a batch, in the order of its units."""

    results: tuple[AssignmentResult, ...]


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """An outcome of a unit; without a metric it is of the first one, without a value it is 1."""

    experiment_id: str
    unit_id: str
    outcome_id: str | None = None
    metric: str | None = None
    value: int | float | Decimal | None = None
    occurred_at: datetime | None = None


class OutcomeFields(TypedDict, total=False):
    """An `Outcome` as a mapping; `experiment_id` and `unit_id` are required."""

    experiment_id: str
    unit_id: str
    outcome_id: str | None
    metric: str | None
    value: int | float | Decimal | None
    occurred_at: datetime | None


class RecordedOutcome(msgspec.Struct, frozen=True):
    """What became of an outcome: counted, waiting, before_exposure or outside_window."""

    status: str
    duplicate: bool
    outcome_id: str = ""
    """The one it was sent with: minted, unless it was given."""


class OutcomeResult(msgspec.Struct, frozen=True):
    """What became of one outcome of a batch, or the problem."""

    status: int
    outcome: RecordedOutcome | None = None
    problem: Problem | None = None


class OutcomeAnswer(msgspec.Struct, frozen=True):
    """The results of a batch, in the order of its outcomes."""

    results: tuple[OutcomeResult, ...]


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """A stored evaluation: `kind` is look or confirmation, `verdict` deploy, hold or reject.

    `document` has every condition with its figure.
    """

    decision_no: int
    sequence: int
    kind: str
    look: int
    decided_at: datetime
    as_of: datetime
    verdict: str
    document: dict[str, object]
    input_digest: str
    prev_hash: str
    hash: str
    expires_at: datetime | None = None
    variant: str | None = None


class DecisionPage(msgspec.Struct, frozen=True):
    """A page of decisions, oldest first; `next` is the cursor of the page after it."""

    items: tuple[Decision, ...]
    next: str | None = None


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """Everything to compute a decision anew; hashes are hexadecimal."""

    experiment_no: int
    decision_no: int
    sequence: int
    kind: str
    look: int
    decided_at: datetime
    as_of: datetime
    expires_at: datetime | None
    verdict: str
    variant_no: int | None
    seed: int
    code: str
    inputs: str
    document: str
    input_digest: str
    prev_hash: str
    hash: str


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """A variant that everybody gets, until it is rolled back."""

    deployment_id: str
    experiment_id: str
    tenant_id: str
    variant: str
    decision_no: int
    input_digest: str
    deployed_at: datetime
    deployed_by: str
    rolled_back_at: datetime | None = None
    rolled_back_by: str | None = None
    reason: str | None = None


class Deployments(msgspec.Struct, frozen=True):
    """All deployments of an experiment, oldest first."""

    items: tuple[Deployment, ...]


class ProvenDeployment(msgspec.Struct, frozen=True):
    """A deployment, with the decision it stands on."""

    deployment: Deployment
    decision: Evidence


class SnapshotExperiment(msgspec.Struct, frozen=True, kw_only=True):
    """What it takes to choose a variant of an experiment."""

    experiment_id: str
    state: str
    variants: tuple[Share, ...]
    control: str
    epoch: int | None = None
    holdout: HoldoutTerms | None = None
    namespace: NamespaceTerms | None = None
    deployed: str | None = None


class Snapshot(msgspec.Struct, frozen=True):
    """All experiments that go on or have a variant deployed; `version` names this state."""

    version: str
    experiments: tuple[SnapshotExperiment, ...]
