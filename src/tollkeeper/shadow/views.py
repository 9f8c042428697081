"""Experiments, and the snapshot of them, as the API shows them. Pure."""

from datetime import UTC, datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from tollkeeper.shadow.messages import Share
from tollkeeper.shadow.model import (
    Adaptive,
    Direction,
    Experiment,
    ExperimentState,
    Holdout,
    Metric,
    MetricKind,
    Missing,
    Namespace,
    PerUnit,
)
from tollkeeper.shadow.requests import Snapshot

Moment = Annotated[datetime, Meta(description="UTC")]


class VariantView(msgspec.Struct):
    """A variant, and its share of the units that are assigned now."""

    name: str
    weight: Share


class MetricView(msgspec.Struct):
    """What is measured of a unit."""

    name: str
    kind: MetricKind
    direction: Direction
    missing: Missing
    window_s: int
    per_unit: PerUnit
    prior: Annotated[list[float] | None, Meta(description="null: one that says little")]
    tolerance: float


class ExperimentView(msgspec.Struct):
    """An experiment as it stands."""

    experiment_id: str
    tenant_id: str
    state: ExperimentState
    version: Annotated[int, Meta(description="moves with every change")]
    description: str
    variants: list[VariantView]
    control: str
    metrics: list[MetricView]
    units: int
    looks: int | None
    margin: float
    profile: str
    adaptive: Adaptive | None
    holdout: Holdout | None
    namespace: Namespace | None
    early_s: int
    epoch: Annotated[int | None, Meta(description="of its weights; null: it has not started")]
    deployed: Annotated[str | None, Meta(description="the variant that everybody gets")]
    created_at: Moment
    started_at: Moment | None
    ended_at: Moment | None


class ExperimentsPage(msgspec.Struct):
    """Experiments, oldest first; `next` is null on the last page."""

    items: list[ExperimentView]
    next: Annotated[str | None, Meta(description="send it as `after` for the next page")]


class SnapshotExperiment(msgspec.Struct):
    """What it takes to choose a variant of an experiment."""

    experiment_id: str
    state: ExperimentState
    epoch: int | None
    variants: list[VariantView]
    control: str
    holdout: Holdout | None
    namespace: Namespace | None
    deployed: Annotated[str | None, Meta(description="the variant that everybody gets")]


class SnapshotView(msgspec.Struct):
    """All experiments that go on or have a variant deployed."""

    version: Annotated[str, Meta(description="also the `ETag`")]
    experiments: list[SnapshotExperiment]


def experiment_view(experiment: Experiment) -> ExperimentView:
    """Return an experiment as the API shows it."""
    definition = experiment.definition
    return ExperimentView(
        experiment_id=experiment.experiment_id,
        tenant_id=experiment.tenant_id,
        state=experiment.state,
        version=experiment.version,
        description=definition.description,
        variants=_variant_views(experiment),
        control=definition.control,
        metrics=[_metric_view(metric) for metric in definition.metrics],
        units=definition.units,
        looks=definition.looks,
        margin=definition.margin,
        profile=definition.profile,
        adaptive=definition.adaptive,
        holdout=definition.holdout,
        namespace=definition.namespace,
        early_s=definition.early_s,
        epoch=experiment.epochs[-1].epoch if experiment.epochs else None,
        deployed=deployed_name(experiment),
        created_at=experiment.created_at.astimezone(UTC),
        started_at=utc(experiment.started_at),
        ended_at=utc(experiment.ended_at),
    )


def snapshot_view(snapshot: Snapshot) -> SnapshotView:
    """Return a snapshot as the API shows it."""
    return SnapshotView(
        version=snapshot.version,
        experiments=[
            SnapshotExperiment(
                experiment_id=each.experiment_id,
                state=each.state,
                epoch=each.epochs[-1].epoch if each.epochs else None,
                variants=_variant_views(each),
                control=each.definition.control,
                holdout=each.definition.holdout,
                namespace=each.definition.namespace,
                deployed=deployed_name(each),
            )
            for each in snapshot.experiments
        ],
    )


def deployed_name(experiment: Experiment) -> str | None:
    """Return the name of the variant that is deployed; None: there is none."""
    number = experiment.deployed_no
    return None if number is None else experiment.definition.names[number]


def utc(moment: datetime | None) -> datetime | None:
    """Return a moment in UTC, if there is one."""
    return None if moment is None else moment.astimezone(UTC)


def _metric_view(metric: Metric) -> MetricView:
    return MetricView(
        name=metric.name, kind=metric.kind, direction=metric.direction, missing=metric.missing,
        window_s=metric.window_s, per_unit=metric.unit_value, prior=list(metric.prior) or None,
        tolerance=metric.tolerance,
    )  # fmt: skip


def _variant_views(experiment: Experiment) -> list[VariantView]:
    shares = zip(experiment.definition.names, experiment.weights, strict=True)
    return [VariantView(name, weight) for name, weight in shares]
