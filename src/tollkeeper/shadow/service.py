"""What can be asked of experiments: made and changed, units assigned, outcomes recorded.

Exposures and outcomes go through the engine; changes of an experiment are one unit of work each.
Who a unit is assigned to follows from its id and the weights of an epoch alone, so that a client
can choose by itself and report later; the first exposure that is recorded stands.
"""

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

import msgspec
import structlog

from tollkeeper.database.connect import is_retryable
from tollkeeper.database.driver import Connection
from tollkeeper.database.errors import DatabaseError
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.clock import Clock
from tollkeeper.kernel.ids import TenantId
from tollkeeper.shadow.allocation import (
    Allocation,
    HoldoutShare,
    NamespaceRange,
    Placement,
    PlacementKind,
    allocate,
)
from tollkeeper.shadow.catalogue import FRESH_FOR_S, Catalogue
from tollkeeper.shadow.counting import shard_of
from tollkeeper.shadow.engine import Engine, Result
from tollkeeper.shadow.errors import (
    DefinitionInvalid,
    EpochUnknown,
    ExperimentChanged,
    ExperimentNotDraft,
    ExperimentNotFound,
    ExperimentNotRunning,
    ExperimentTaken,
    OutcomeFailed,
    ShadowError,
    ShadowUnavailable,
    StateRefused,
)
from tollkeeper.shadow.experiment_store import ExperimentStore
from tollkeeper.shadow.model import (
    Definition,
    Experiment,
    ExperimentId,
    ExperimentState,
    Expose,
    Exposed,
    Record,
    Recorded,
    Request,
)
from tollkeeper.shadow.profiles import profile_of
from tollkeeper.shadow.requests import (
    Assigned,
    AssignmentStatus,
    AssignUnit,
    Change,
    ReportedOutcome,
    Snapshot,
)

SNAPSHOT_LIMIT: Final = 10_000
"""Experiments in a snapshot at most: the oldest ones that units are assigned by."""

ALLOCATIONS_LIMIT: Final = 10_000
"""Epochs whose allocation is kept in memory; it is made anew in microseconds."""

_UNCOUNTED: Final[Mapping[PlacementKind, AssignmentStatus]] = {
    PlacementKind.HELD_OUT: AssignmentStatus.HELD_OUT,
    PlacementKind.EXCLUDED: AssignmentStatus.EXCLUDED,
}

_log = structlog.get_logger(__name__)


class ShadowService:
    """The methods of experiments. A caller bound to a tenant sees that tenant's alone."""

    def __init__(
        self,
        engine: Engine,
        catalogue: Catalogue,
        store: ExperimentStore,
        *,
        reads: Pool,
        writes: Pool,
        clock: Clock,
    ) -> None:
        self._engine = engine
        self._catalogue = catalogue
        self._store = store
        self._reads = reads
        self._writes = writes
        self._clock = clock
        self._allocations: dict[tuple[int, int], tuple[int, Allocation]] = {}
        self._shown: tuple[Experiment, ...] = ()
        self._shown_at_s = -math.inf
        self._showing: asyncio.Task[tuple[Experiment, ...]] | None = None

    async def create(
        self, experiment_id: str, definition: Definition, tenant_id: TenantId
    ) -> tuple[Experiment, bool]:
        """Make a draft, and say whether it is new: the same again changes nothing.

        Raises:
            ExperimentTaken: the id stands for an experiment that is another.
            ProfileUnknown: there is no such gate.
            ShadowUnavailable: try again.
        """
        _check_profile(definition)
        async with lent(self._writes) as connection:
            name = ExperimentId(experiment_id)
            is_new = await self._store.create(connection, name, tenant_id, definition)
            experiment = await self._store.read(connection, name)
        assert experiment is not None
        if not is_new and (experiment.tenant_id, experiment.definition) != (tenant_id, definition):
            raise ExperimentTaken(experiment_id=experiment_id)
        if is_new:
            _log.info("shadow.experiment_created", experiment=experiment_id, tenant=tenant_id)
        return experiment, is_new

    async def read(self, experiment_id: str, tenant_id: TenantId | None) -> Experiment:
        """Return an experiment as it stands.

        Raises:
            ExperimentNotFound: there is none, or it is another tenant's.
        """
        async with self._reads.connection() as connection:
            found = await self._store.read(connection, experiment_id)
        return visible(found, experiment_id, tenant_id)

    async def page(
        self,
        tenant_id: TenantId | None,
        *,
        state: ExperimentState | None,
        after: int,
        limit: int,
    ) -> list[Experiment]:
        """Return up to `limit` experiments with a number above `after`, oldest first."""
        async with self._reads.connection() as connection:
            return await self._store.page(connection, tenant_id, state, after=after, limit=limit)

    async def change(
        self, experiment_id: str, tenant_id: TenantId | None, change: Change
    ) -> Experiment:
        """Change an experiment, all that is asked or nothing, and return it as it is then.

        Raises:
            ExperimentNotFound: there is none, or it is another tenant's.
            ExperimentNotDraft: its definition is fixed.
            ExperimentNotRunning: weights change while it runs.
            ExperimentChanged: somebody was faster.
            StateRefused: there is no way to that state.
            NamespaceTaken: another running experiment has a part of its range.
            DefinitionInvalid: the weights are not one for each variant, or not of this experiment.
            ShadowUnavailable: try again.
        """
        async with lent(self._writes) as connection, connection.transaction():
            found = await self._store.read(connection, experiment_id)
            experiment = visible(found, experiment_id, tenant_id)
            if change.version is not None and change.version != experiment.version:
                raise ExperimentChanged(experiment_id=experiment_id)
            if change.definition is not None and change.definition != experiment.definition:
                experiment = await self._redefine(connection, experiment, change.definition)
            if change.state is not None and change.state is not experiment.state:
                experiment = await self._move(connection, experiment, change.state)
            if change.weights is not None:
                experiment = await self._reweigh(connection, experiment, change.weights)
        self._catalogue.learn(experiment)
        self._shown_at_s, self._showing = -math.inf, None
        _log.info(
            "shadow.experiment_changed", experiment=experiment_id, tenant=experiment.tenant_id,
            state=experiment.state.value, version=experiment.version,
        )  # fmt: skip
        return experiment

    async def assign(
        self, experiment_id: str, tenant_id: TenantId | None, units: Sequence[AssignUnit]
    ) -> list[Assigned | ShadowError | OutcomeFailed]:
        """Return the variant of every unit, in their order; those that are new are assigned.

        Raises:
            ExperimentNotFound: there is none, or it is another tenant's.
            ExperimentNotRunning: it is a draft.
            QueueFull: more would wait than the bound allows.
            Draining: nothing new is accepted.
        """
        found = await self._catalogue.find(experiment_id)
        experiment = visible(found, experiment_id, tenant_id)
        state = experiment.state
        if state is ExperimentState.DRAFT:
            raise ExperimentNotRunning(experiment_id=experiment_id, state=state)
        if experiment.deployed_no is not None:
            return [_uncounted(experiment, unit, AssignmentStatus.DEPLOYED) for unit in units]
        if state is ExperimentState.ENDED:
            return [_uncounted(experiment, unit, AssignmentStatus.ENDED) for unit in units]
        results: list[Assigned | ShadowError | OutcomeFailed | None] = [None] * len(units)
        asked: list[Request] = []
        places: list[int] = []
        for place, unit in enumerate(units):
            exposure = self._exposure(experiment, unit)
            if isinstance(exposure, Expose):
                asked.append(exposure)
                places.append(place)
            else:
                results[place] = exposure
        for place, result in zip(places, await self._engine.execute(asked), strict=True):
            results[place] = _assigned(experiment, units[place], result)
        assert None not in results
        return results  # type: ignore[return-value]  # every place has its result

    async def record(
        self, outcomes: Sequence[ReportedOutcome], tenant_id: TenantId | None
    ) -> list[Recorded | ShadowError | OutcomeFailed]:
        """Record outcomes, each by itself, and return what became of them, in their order.

        Raises:
            QueueFull: more would wait than the bound allows.
            Draining: nothing new is accepted.
        """
        results: list[Recorded | ShadowError | OutcomeFailed | None] = [None] * len(outcomes)
        asked: list[Request] = []
        places: list[int] = []
        seen: dict[str, Experiment | ExperimentNotFound] = {}
        for place, outcome in enumerate(outcomes):
            name = outcome.experiment_id
            if name not in seen:
                seen[name] = await self._seen(name, tenant_id)
            experiment = seen[name]
            if isinstance(experiment, ExperimentNotFound):
                results[place] = experiment
                continue
            try:
                asked.append(_reported(outcome, experiment))
                places.append(place)
            except ShadowError as error:
                results[place] = error
        for place, result in zip(places, await self._engine.execute(asked), strict=True):
            assert not isinstance(result, Exposed)
            results[place] = result
        assert None not in results
        return results  # type: ignore[return-value]  # every place has its result

    async def snapshot(self, tenant_id: TenantId | None) -> Snapshot:
        """Return what a client needs to choose variants by itself, a second old at most."""
        shown = self._shown
        if self._clock.monotonic_s() - self._shown_at_s >= FRESH_FOR_S:
            if self._showing is None:  # who asks while another does gets the same answer
                self._showing = asyncio.create_task(self._show())
                self._showing.add_done_callback(_take_note)
            shown = await asyncio.shield(self._showing)
        experiments = tuple(
            each for each in shown if tenant_id is None or each.tenant_id == tenant_id
        )
        versions = [(each.experiment_no, each.version) for each in experiments]
        digest = hashlib.sha256(msgspec.json.encode(versions)).hexdigest()[:32]
        return Snapshot(version=digest, experiments=experiments)

    async def _show(self) -> tuple[Experiment, ...]:
        began_s, showing = self._clock.monotonic_s(), asyncio.current_task()
        try:
            async with self._reads.connection() as connection:
                found = tuple(await self._store.of_interest(connection, limit=SNAPSHOT_LIMIT))
            if self._showing is showing:  # otherwise something was changed meanwhile
                self._shown, self._shown_at_s = found, began_s
        finally:
            if self._showing is showing:
                self._showing = None
        return found

    async def _redefine(
        self, connection: Connection, experiment: Experiment, definition: Definition
    ) -> Experiment:
        name = experiment.experiment_id
        if experiment.state is not ExperimentState.DRAFT:
            raise ExperimentNotDraft(experiment_id=name, state=experiment.state)
        _check_profile(definition)
        if not await self._store.define(connection, experiment, definition):
            raise ExperimentChanged(experiment_id=name)
        return await self._again(connection, name)

    async def _move(
        self, connection: Connection, experiment: Experiment, state: ExperimentState
    ) -> Experiment:
        name = experiment.experiment_id
        if not await self._store.move(connection, experiment, state):
            now = await self._again(connection, name)
            if now.version != experiment.version:
                raise ExperimentChanged(experiment_id=name)
            raise StateRefused(experiment_id=name, state=now.state, wanted=state)
        return await self._again(connection, name)

    async def _reweigh(
        self, connection: Connection, experiment: Experiment, weights: Mapping[str, float]
    ) -> Experiment:
        name, definition = experiment.experiment_id, experiment.definition
        if definition.adaptive is not None:
            raise DefinitionInvalid(field="weights", fault="of an adaptive experiment follow it")
        if experiment.state is not ExperimentState.RUNNING:
            raise ExperimentNotRunning(experiment_id=name, state=experiment.state)
        if set(weights) != set(definition.names):
            names = ", ".join(definition.names)
            raise DefinitionInvalid(field="weights", fault=f"must be of {names}, one each")
        wanted = tuple(
            msgspec.structs.replace(variant, weight=weights[variant.name])
            for variant in definition.variants
        )
        msgspec.structs.replace(definition, variants=wanted)  # refuses what does not sum to 1
        shares = [variant.weight for variant in wanted]
        if tuple(shares) == experiment.weights:
            return experiment
        if not await self._store.begin_epoch(connection, experiment, shares):
            raise ExperimentChanged(experiment_id=name)
        return await self._again(connection, name)

    async def _again(self, connection: Connection, name: ExperimentId) -> Experiment:
        experiment = await self._store.read(connection, name)
        assert experiment is not None, "nobody deletes experiments"
        return experiment

    def _exposure(
        self, experiment: Experiment, unit: AssignUnit
    ) -> Expose | Assigned | EpochUnknown:
        epoch = len(experiment.epochs) if unit.epoch is None else unit.epoch
        if not 1 <= epoch <= len(experiment.epochs):
            return EpochUnknown(experiment_id=experiment.experiment_id, epoch=epoch)
        placement = self._placement(experiment, epoch, unit.unit_id)
        status = _UNCOUNTED.get(placement.kind)
        if status is not None:
            return _uncounted(experiment, unit, status)
        assert placement.variant is not None
        assert placement.probability is not None
        return Expose(
            experiment_no=experiment.experiment_no,
            unit_id=unit.unit_id,
            shard=shard_of(unit.unit_id),
            variant_no=placement.variant,
            epoch=epoch,
            probability=placement.probability,
            exposed_at=unit.exposed_at,
            attributes=unit.attributes,
        )

    def _placement(self, experiment: Experiment, epoch: int, unit_id: str) -> Placement:
        """Place a unit; what an experiment allocates by is kept until its version moves."""
        key = (experiment.experiment_no, epoch)
        kept = self._allocations.get(key)
        if kept is None or kept[0] != experiment.version:
            if len(self._allocations) >= ALLOCATIONS_LIMIT:
                self._allocations.clear()
            kept = experiment.version, allocation_of(experiment, epoch)
            self._allocations[key] = kept
        return allocate(kept[1], unit_id)

    async def _seen(
        self, experiment_id: str, tenant_id: TenantId | None
    ) -> Experiment | ExperimentNotFound:
        """Find an experiment for a whole list: one that is not there is not in the catalogue."""
        try:
            found = await self._catalogue.find(experiment_id)
            return visible(found, experiment_id, tenant_id)
        except ExperimentNotFound as error:
            return error


def allocation_of(experiment: Experiment, epoch: int) -> Allocation:
    """Return what units of an epoch are allocated by; the salt is the experiment's id."""
    holdout, namespace = experiment.definition.holdout, experiment.definition.namespace
    return Allocation(
        salt=experiment.experiment_id,
        weights=experiment.epochs[epoch - 1].weights,
        holdout=None if holdout is None else HoldoutShare(group=holdout.group, share=holdout.share),
        namespace=None
        if namespace is None
        else NamespaceRange(name=namespace.name, start=namespace.start, end=namespace.end),
    )


def visible(
    experiment: Experiment | None, experiment_id: str, tenant_id: TenantId | None
) -> Experiment:
    """Return an experiment that the caller may see.

    Raises:
        ExperimentNotFound: there is none, or it is another tenant's.
    """
    if experiment is None or (tenant_id is not None and experiment.tenant_id != tenant_id):
        raise ExperimentNotFound(experiment_id=experiment_id)
    return experiment


@asynccontextmanager
async def lent(pool: Pool) -> AsyncIterator[Connection]:
    """Lend a connection; what may succeed when it is tried again is the caller's to repeat.

    What the database layer knows stays its own error: its words are not for callers.
    """
    try:
        async with pool.connection() as connection:
            yield connection
    except DatabaseError:
        raise
    except Exception as error:
        if not is_retryable(error):
            raise
        reason = str(error) or type(error).__name__
        raise ShadowUnavailable(attempts=1, reason=reason) from error


def _take_note(showing: asyncio.Task[tuple[Experiment, ...]]) -> None:
    if not showing.cancelled():
        showing.exception()  # who asked may have left: nobody else takes note of it


def _check_profile(definition: Definition) -> None:
    if profile_of(definition.profile).plans_looks and definition.looks is None:
        fault = f"must be a number: profile {definition.profile} decides at planned looks only"
        raise DefinitionInvalid(field="looks", fault=fault)


def _uncounted(experiment: Experiment, unit: AssignUnit, status: AssignmentStatus) -> Assigned:
    number = experiment.deployed_no
    if number is None:
        number = experiment.definition.control_no
    return Assigned(
        unit_id=unit.unit_id, status=status, variant=experiment.definition.names[number]
    )


def _reported(outcome: ReportedOutcome, experiment: Experiment) -> Record:
    """Return what is to be counted of an outcome.

    Raises:
        ExperimentNotRunning: it is a draft.
        MetricUnknown: it has no such metric.
    """
    name = experiment.experiment_id
    if experiment.state is ExperimentState.DRAFT:
        raise ExperimentNotRunning(experiment_id=name, state=experiment.state)
    return Record(
        experiment_no=experiment.experiment_no,
        unit_id=outcome.unit_id,
        shard=shard_of(outcome.unit_id),
        outcome_id=outcome.outcome_id,
        metric_no=experiment.definition.metric_no(name, outcome.metric),
        value_micro=outcome.value_micro,
        occurred_at=outcome.occurred_at,
    )


def _assigned(
    experiment: Experiment, unit: AssignUnit, result: Result
) -> Assigned | ShadowError | OutcomeFailed:
    if isinstance(result, ExperimentNotRunning):
        # It was paused or ended while this waited: who is new gets the control.
        status = AssignmentStatus(result.state)
        return _uncounted(experiment, unit, status)
    if not isinstance(result, Exposed):
        assert not isinstance(result, Recorded)
        return result
    return Assigned(
        unit_id=unit.unit_id,
        status=AssignmentStatus.ASSIGNED,
        variant=experiment.definition.names[result.variant_no],
        probability=result.probability,
        epoch=result.epoch,
        exposed_at=result.exposed_at,
        is_new=result.is_new,
    )
