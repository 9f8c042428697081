"""What the commands of experiments need of a service and of a terminal, and nothing else. Pure.

Knows neither HTTP nor where the service is: `tollkeeper.cli` puts a `Terminal` into the context,
which runs work against the service and prints what came of it.
"""
# ruff: noqa: D102 - the views' properties are the contract's fields and say what they are

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Protocol, TypeVar

_Result = TypeVar("_Result")
_Item = TypeVar("_Item", covariant=True)  # noqa: PLC0105  # called like `_Result`

Attributes = Mapping[str, str | int | float | bool | None]


class ShareView(Protocol):
    """What is printed of a variant."""

    @property
    def name(self) -> str: ...
    @property
    def weight(self) -> float: ...


class MetricView(Protocol):
    """What is printed of a metric."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def direction(self) -> str: ...
    @property
    def missing(self) -> str: ...
    @property
    def window_s(self) -> int: ...
    @property
    def per_unit(self) -> str: ...
    @property
    def tolerance(self) -> float: ...


class AdaptiveView(Protocol):
    """What is printed of weights that follow the evidence."""

    @property
    def floor(self) -> float: ...


class HoldoutView(Protocol):
    """What is printed of a holdout."""

    @property
    def group(self) -> str: ...
    @property
    def share(self) -> float: ...


class NamespaceView(Protocol):
    """What is printed of a namespace's range."""

    @property
    def name(self) -> str: ...
    @property
    def start(self) -> float: ...
    @property
    def end(self) -> float: ...


class ExperimentView(Protocol):
    """What is printed of an experiment."""

    @property
    def experiment_id(self) -> str: ...
    @property
    def tenant_id(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def variants(self) -> Sequence[ShareView]: ...
    @property
    def control(self) -> str: ...
    @property
    def metrics(self) -> Sequence[MetricView]: ...
    @property
    def units(self) -> int: ...
    @property
    def looks(self) -> int | None: ...
    @property
    def margin(self) -> float: ...
    @property
    def profile(self) -> str: ...
    @property
    def adaptive(self) -> AdaptiveView | None: ...
    @property
    def holdout(self) -> HoldoutView | None: ...
    @property
    def namespace(self) -> NamespaceView | None: ...
    @property
    def epoch(self) -> int | None: ...
    @property
    def deployed(self) -> str | None: ...
    @property
    def created_at(self) -> datetime: ...
    @property
    def started_at(self) -> datetime | None: ...
    @property
    def ended_at(self) -> datetime | None: ...


class CreatedView(Protocol):
    """What is printed of an experiment that was created, or was there."""

    @property
    def experiment(self) -> ExperimentView: ...
    @property
    def is_new(self) -> bool: ...


class PageView(Protocol[_Item]):
    """What is printed of a page, and the cursor of the one behind it."""

    @property
    def items(self) -> Sequence[_Item]: ...
    @property
    def next(self) -> str | None: ...


class AssignmentView(Protocol):
    """What is printed of an assignment."""

    @property
    def unit_id(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def variant(self) -> str: ...
    @property
    def probability(self) -> float | None: ...
    @property
    def epoch(self) -> int | None: ...
    @property
    def exposed_at(self) -> datetime | None: ...


class ProblemView(Protocol):
    """What is printed of an item that was refused."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def detail(self) -> str: ...


class AssignmentResultView(Protocol):
    """What became of a unit of a batch."""

    @property
    def status(self) -> int: ...
    @property
    def assignment(self) -> AssignmentView | None: ...
    @property
    def problem(self) -> ProblemView | None: ...


class RecordedView(Protocol):
    """What is printed of an outcome."""

    @property
    def status(self) -> str: ...
    @property
    def duplicate(self) -> bool: ...
    @property
    def outcome_id(self) -> str: ...


class OutcomeResultView(Protocol):
    """What became of an outcome of a batch."""

    @property
    def status(self) -> int: ...
    @property
    def outcome(self) -> RecordedView | None: ...
    @property
    def problem(self) -> ProblemView | None: ...


class DecisionView(Protocol):
    """What is printed of a decision."""

    @property
    def decision_no(self) -> int: ...
    @property
    def sequence(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def look(self) -> int: ...
    @property
    def decided_at(self) -> datetime: ...
    @property
    def expires_at(self) -> datetime | None: ...
    @property
    def verdict(self) -> str: ...
    @property
    def variant(self) -> str | None: ...
    @property
    def document(self) -> Mapping[str, object]: ...


class EvidenceView(Protocol):
    """Everything that a decision is computed anew from."""

    @property
    def experiment_no(self) -> int: ...
    @property
    def decision_no(self) -> int: ...
    @property
    def sequence(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def look(self) -> int: ...
    @property
    def decided_at(self) -> datetime: ...
    @property
    def as_of(self) -> datetime: ...
    @property
    def expires_at(self) -> datetime | None: ...
    @property
    def verdict(self) -> str: ...
    @property
    def variant_no(self) -> int | None: ...
    @property
    def seed(self) -> int: ...
    @property
    def code(self) -> str: ...
    @property
    def inputs(self) -> str: ...
    @property
    def document(self) -> str: ...
    @property
    def input_digest(self) -> str: ...
    @property
    def prev_hash(self) -> str: ...
    @property
    def hash(self) -> str: ...


class DeploymentView(Protocol):
    """What is printed of a deployment."""

    @property
    def deployment_id(self) -> str: ...
    @property
    def experiment_id(self) -> str: ...
    @property
    def tenant_id(self) -> str: ...
    @property
    def variant(self) -> str: ...
    @property
    def decision_no(self) -> int: ...
    @property
    def input_digest(self) -> str: ...
    @property
    def deployed_at(self) -> datetime: ...
    @property
    def deployed_by(self) -> str: ...
    @property
    def rolled_back_at(self) -> datetime | None: ...
    @property
    def rolled_back_by(self) -> str | None: ...
    @property
    def reason(self) -> str | None: ...


class ProvenView(Protocol):
    """A deployment, with the decision it stands on."""

    @property
    def deployment(self) -> DeploymentView: ...
    @property
    def decision(self) -> EvidenceView: ...


class Remote(Protocol):
    """The calls these commands make."""

    async def create(
        self,
        experiment_id: str,
        definition: Mapping[str, object],
        *,
        tenant_id: str | None = None,
        start: bool = False,
    ) -> CreatedView:
        """Create an experiment."""
        ...

    async def experiment(self, experiment_id: str) -> ExperimentView:
        """Return an experiment."""
        ...

    async def experiments(
        self, *, state: str | None = None, after: str | None = None, limit: int = ...
    ) -> PageView[ExperimentView]:
        """Return a page of experiments."""
        ...

    async def change(
        self,
        experiment_id: str,
        *,
        state: str | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> ExperimentView:
        """Change an experiment."""
        ...

    async def assign(
        self, experiment_id: str, unit_id: str, attributes: Attributes | None = None
    ) -> AssignmentView:
        """Assign a unit."""
        ...

    async def assign_batch(
        self, experiment_id: str, units: Sequence[str]
    ) -> Sequence[AssignmentResultView]:
        """Assign units together."""
        ...

    async def record(
        self,
        experiment_id: str,
        unit_id: str,
        value: Decimal | None = None,
        *,
        metric: str | None = None,
        occurred_at: datetime | None = None,
        outcome_id: str | None = None,
    ) -> RecordedView:
        """Record an outcome."""
        ...

    async def record_batch(
        self, outcomes: Sequence[Mapping[str, object]]
    ) -> Sequence[OutcomeResultView]:
        """Record outcomes together."""
        ...

    async def analysis(self, experiment_id: str) -> bytes:
        """Return the analysis as JSON."""
        ...

    async def decisions(
        self, experiment_id: str, *, after: str | None = None, limit: int = ...
    ) -> PageView[DecisionView]:
        """Return a page of decisions."""
        ...

    async def deploy(self, experiment_id: str, variant: str) -> DeploymentView:
        """Deploy a variant."""
        ...

    async def roll_back(self, deployment_id: str, *, reason: str | None = None) -> DeploymentView:
        """Take a deployment back."""
        ...

    async def deployments(self, experiment_id: str) -> Sequence[DeploymentView]:
        """Return the deployments of an experiment."""
        ...

    async def deployment(self, deployment_id: str) -> ProvenView:
        """Return a deployment with its decision."""
        ...


class Listing(Protocol):
    """A table that is printed as its rows come."""

    def add(self, rows: Sequence[Sequence[str]], tones: Sequence[str] = ()) -> None:
        """Print rows below those before; `tones` are the rows'."""
        ...


Fact = tuple[str, str] | tuple[str, str, str]
"""A name, a value, and where it matters whether that is `good`, `bad` or a warning (`warn`)."""


class Terminal(Protocol):
    """What `tollkeeper.cli` gives these commands: a service to work on, and a way to print."""

    def call_shadow(self, work: Callable[[Remote], Awaitable[_Result]]) -> _Result:
        """Connect to the service, do the work, disconnect."""
        ...

    def is_plain(self) -> bool:
        """Whether standard output shows neither colours nor signs beyond letters."""
        ...

    def clear(self) -> None:
        """Clear the screen, where there is one."""
        ...

    def json(self, document: object) -> None:
        """Print one JSON document to standard output."""
        ...

    def json_lines(self, documents: Sequence[object]) -> None:
        """Print JSON documents to standard output, one a line."""
        ...

    def say(self, text: str) -> None:
        """Print a sentence to standard error."""
        ...

    def say_toned(self, text: str, tone: str) -> None:
        """Print a sentence to standard error, in the colour of its tone."""
        ...

    def text(self, text: str) -> None:
        """Print text to standard output as it is."""
        ...

    def write(self, path: Path, document: bytes) -> None:
        """Write a file whole or not at all."""
        ...

    def facts(self, title: str, facts: Sequence[Fact]) -> None:
        """Print named facts below each other."""
        ...

    def table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        tones: Sequence[str] = (),
    ) -> None:
        """Print rows; a column whose name starts with `#` holds numbers; `tones` are the rows'."""
        ...

    def listing(self, title: str, columns: Sequence[str]) -> Listing:
        """Return a table, of columns as above, that is printed as its rows come."""
        ...

    def progress(
        self, title: str, *, done: Callable[[], int], total: int | None = None
    ) -> AbstractAsyncContextManager[None]:
        """Show on standard error how much is done while the block runs."""
        ...
