"""What the shadow service refuses, and why.

ShadowError                         (TollkeeperError)
├── ExperimentNotFound              no such experiment, or not one of the caller's tenant
├── ExperimentTaken                 the id stands for another experiment
├── DefinitionInvalid               a definition that cannot be: the field is named
├── ExperimentNotDraft              arms, metrics and plan change in a draft only
├── StateRefused                    there is no way from one state to the other
├── ExperimentChanged               somebody changed it meanwhile
├── ExperimentNotRunning            nothing is assigned or counted yet
├── NamespaceTaken                  the range is another running experiment's
├── VariantUnknown
├── MetricUnknown
├── EpochUnknown                    weights that never were
├── ValueInvalid                    not a value of this metric
├── UnitNotExposed                  nobody was assigned, and nothing can be awaited any more
├── OutcomeReused                   the outcome's id stands for another outcome
├── GateRefused                     no deployment without a verdict that holds now
├── AlreadyDeployed
├── DeploymentNotFound
├── NotEnoughData                   a posterior that would not be proper
├── ProfileUnknown
└── ShadowBusy                      try again later; an outcome with the same id
    ├── QueueFull
    ├── Draining
    └── ShadowUnavailable           retries are used up
OutcomeFailed                       (TollkeeperError) no rule said so: an internal error
InputsUnreadable                    (TollkeeperError) stored inputs that this version cannot read
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from tollkeeper.kernel.errors import TollkeeperError


@dataclass(eq=False, kw_only=True)
class ShadowError(TollkeeperError):
    """Base of the shadow service's errors."""


@dataclass(eq=False, kw_only=True)
class ExperimentNotFound(ShadowError):
    """No such experiment, or not one of the caller's tenant."""

    experiment_id: str

    def message(self) -> str:
        """Name the experiment."""
        return f"there is no experiment {self.experiment_id}; create it first"


@dataclass(eq=False, kw_only=True)
class ExperimentTaken(ShadowError):
    """The id stands for another experiment, of whatever tenant."""

    experiment_id: str

    def message(self) -> str:
        """Name the experiment, but not its tenant."""
        return (
            f"experiment {self.experiment_id} exists and is defined otherwise; choose another id, "
            "or change it while it is a draft"
        )


@dataclass(eq=False, kw_only=True)
class DefinitionInvalid(ShadowError):
    """A definition that cannot be."""

    field: str
    fault: str

    def message(self) -> str:
        """Name the field and its fault."""
        return f"{self.field} {self.fault}"


@dataclass(eq=False, kw_only=True)
class ExperimentNotDraft(ShadowError):
    """Arms, metrics and plan are fixed from the start on."""

    experiment_id: str
    state: str

    def message(self) -> str:
        """Say what can be done instead."""
        return (
            f"experiment {self.experiment_id} is {self.state}: its variants, metrics and plan "
            "cannot change any more; end it and create another"
        )


@dataclass(eq=False, kw_only=True)
class StateRefused(ShadowError):
    """There is no way from one state to the other."""

    experiment_id: str
    state: str
    wanted: str

    def message(self) -> str:
        """Name both states."""
        return f"experiment {self.experiment_id} is {self.state} and cannot become {self.wanted}"


@dataclass(eq=False, kw_only=True)
class ExperimentChanged(ShadowError):
    """Somebody changed the experiment since it was read."""

    experiment_id: str

    def message(self) -> str:
        """Say what to do."""
        return f"experiment {self.experiment_id} was changed meanwhile; read it and try again"


@dataclass(eq=False, kw_only=True)
class ExperimentNotRunning(ShadowError):
    """Nothing is assigned or counted yet."""

    experiment_id: str
    state: str

    def message(self) -> str:
        """Say how to start it, if it can be."""
        if self.state == "ended":
            return f"experiment {self.experiment_id} has ended; create another"
        return f"experiment {self.experiment_id} is {self.state}; set its state to running first"


@dataclass(eq=False, kw_only=True)
class NamespaceTaken(ShadowError):
    """The range of the namespace overlaps with another running experiment's."""

    namespace: str
    other: str

    def message(self) -> str:
        """Name the other experiment."""
        return (
            f"namespace {self.namespace} is taken there by running experiment {self.other}; "
            "end it, or take another range"
        )


@dataclass(eq=False, kw_only=True)
class VariantUnknown(ShadowError):
    """The experiment has no such variant."""

    experiment_id: str
    variant: str
    known: tuple[str, ...]

    def message(self) -> str:
        """List those it has."""
        names = ", ".join(self.known)
        return f"experiment {self.experiment_id} has no variant {self.variant}; it has {names}"


@dataclass(eq=False, kw_only=True)
class MetricUnknown(ShadowError):
    """The experiment has no such metric."""

    experiment_id: str
    metric: str
    known: tuple[str, ...]

    def message(self) -> str:
        """List those it has."""
        names = ", ".join(self.known)
        return f"experiment {self.experiment_id} has no metric {self.metric}; it has {names}"


@dataclass(eq=False, kw_only=True)
class EpochUnknown(ShadowError):
    """The experiment never had these weights."""

    experiment_id: str
    epoch: int

    def message(self) -> str:
        """Say where epochs come from."""
        return (
            f"experiment {self.experiment_id} has no epoch {self.epoch}; take it from the snapshot"
        )


@dataclass(eq=False, kw_only=True)
class ValueInvalid(ShadowError):
    """Not a value of this metric."""

    metric: str
    fault: str

    def message(self) -> str:
        """Name the metric and the fault."""
        return f"the value of metric {self.metric} {self.fault}"


@dataclass(eq=False, kw_only=True)
class UnitNotExposed(ShadowError):
    """The unit was never assigned, and its exposure cannot be awaited any more."""

    experiment_id: str
    unit_id: str

    def message(self) -> str:
        """Say what to do."""
        return (
            f"unit {self.unit_id} was never assigned in experiment {self.experiment_id}; assign it "
            "first, or send outcomes within early_s of their time"
        )


@dataclass(eq=False, kw_only=True)
class OutcomeReused(ShadowError):
    """The outcome's id stands for another outcome of this unit."""

    experiment_id: str
    unit_id: str
    outcome_id: str

    def message(self) -> str:
        """Say what to do."""
        return (
            f"outcome {self.outcome_id} of unit {self.unit_id} was recorded with another content; "
            "send another outcome_id"
        )


@dataclass(eq=False, kw_only=True)
class GateRefused(ShadowError):
    """The gate does not let the variant through; `reasons` says each condition that fails."""

    experiment_id: str
    variant: str
    verdict: str
    reasons: Sequence[str]

    def message(self) -> str:
        """Say why."""
        why = "; ".join(self.reasons) or "there is no verdict yet"
        return (
            f"variant {self.variant} of experiment {self.experiment_id} may not be deployed "
            f"({self.verdict}): {why}"
        )


@dataclass(eq=False, kw_only=True)
class AlreadyDeployed(ShadowError):
    """A variant of the experiment is deployed."""

    experiment_id: str

    def message(self) -> str:
        """Say what to do."""
        return (
            f"a variant of experiment {self.experiment_id} is deployed; roll it back, and run a "
            "new experiment for another"
        )


@dataclass(eq=False, kw_only=True)
class DeploymentNotFound(ShadowError):
    """No such deployment, or not one of the caller's tenant."""

    deployment_id: UUID

    def message(self) -> str:
        """Name the deployment."""
        return f"there is no deployment {self.deployment_id}"


@dataclass(eq=False, kw_only=True)
class NotEnoughData(ShadowError):
    """A posterior that would not be proper yet."""

    reason: str

    def message(self) -> str:
        """Say what is missing."""
        return self.reason


@dataclass(eq=False, kw_only=True)
class ProfileUnknown(ShadowError):
    """No gate has this name and version."""

    profile: str
    known: tuple[str, ...]

    def message(self) -> str:
        """List the known ones."""
        return f"there is no gate profile {self.profile}; there is {', '.join(self.known)}"


@dataclass(eq=False, kw_only=True)
class ShadowBusy(ShadowError):
    """Not now; the same request later does no harm."""

    @property
    def retry_after_s(self) -> float:
        """When to come back, in seconds."""
        return 1.0


@dataclass(eq=False, kw_only=True)
class QueueFull(ShadowBusy):
    """More would wait than the bound allows."""

    waiting: int
    limit: int

    def message(self) -> str:
        """Say how full it is."""
        return f"{self.waiting} requests wait and the limit is {self.limit}; try again shortly"


@dataclass(eq=False, kw_only=True)
class Draining(ShadowBusy):
    """The service is shutting down."""

    def message(self) -> str:
        """Say what to do."""
        return "the service is shutting down; send it to another process"


@dataclass(eq=False, kw_only=True)
class ShadowUnavailable(ShadowBusy):
    """The database did not take it, however often it was tried."""

    attempts: int
    reason: str

    def message(self) -> str:
        """Say what was tried."""
        return (
            f"not recorded after {self.attempts} attempts ({self.reason}); repeat it, with the "
            "same outcome_id"
        )


@dataclass(eq=False, kw_only=True)
class OutcomeFailed(TollkeeperError):
    """Nobody foresaw why; the cause is in the log."""

    experiment_no: int

    def message(self) -> str:
        """Say where to look."""
        return f"a request of experiment {self.experiment_no} failed; the log says why"


@dataclass(eq=False, kw_only=True)
class InputsUnreadable(TollkeeperError):
    """The inputs of a decision that this version cannot read."""

    fault: str

    def message(self) -> str:
        """Say what to read them with."""
        return (
            f"the inputs of the decision cannot be read ({self.fault}); use the version that "
            "the decision names"
        )
