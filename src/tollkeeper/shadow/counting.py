"""Counting: who was assigned what, which outcomes count, and what that adds to the sums. Pure.

Every rule about exposures and outcomes is here, once. The first exposure of a unit stands for ever.
An outcome is kept once by its id, waits while its unit has no exposure, and counts when it happened
from `early_s` before the exposure to the end of its metric's window. Requests are decided in order;
what they change is the same in any order, but for what is refused.

Not here: which rows are read, and what if somebody else changes them meanwhile (`store.py`).

Invariant: sums move by what the units' values move, in whole micro-units.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

import msgspec

from tollkeeper.shadow.errors import (
    EpochUnknown,
    ExperimentNotFound,
    ExperimentNotRunning,
    MetricUnknown,
    OutcomeReused,
    ShadowError,
    UnitNotExposed,
    ValueInvalid,
    VariantUnknown,
)
from tollkeeper.shadow.model import (
    MICRO,
    VALUE_LIMIT,
    Experiment,
    ExperimentState,
    Expose,
    Exposed,
    Metric,
    MetricKind,
    OutcomeStatus,
    PerUnit,
    Record,
    Recorded,
    Request,
)

SHARDS: Final = 256

Decided = Exposed | Recorded | ShadowError

UnitKey = tuple[int, str]
"""Number of the experiment, id of the unit."""
OutcomeKey = tuple[int, str, str]
"""The same, and id of the outcome."""
ValueKey = tuple[int, str, int]
"""The same, and number of the metric."""

_LIMIT_MICRO: Final = VALUE_LIMIT * MICRO
_WAITING, _COUNTED = OutcomeStatus.WAITING, OutcomeStatus.COUNTED
_NEW: Final = {status: Recorded(status=status, is_new=True) for status in OutcomeStatus}
_KNOWN: Final = {status: Recorded(status=status, is_new=False) for status in OutcomeStatus}
"""Answers are values: made once, they cost nothing."""


def shard_of(unit_id: str) -> int:
    """Return the shard of a unit, from 0 to `SHARDS`: it chooses the lane."""
    return zlib.crc32(unit_id.encode()) % SHARDS


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricRules:
    """What of a metric decides about its outcomes."""

    name: str
    kind: MetricKind
    window: timedelta
    combine: Callable[[int, int, int, int], int]
    """Makes a unit's value of (the value so far, the new one, total, number of outcomes)."""

    def fault(self, value_micro: int) -> str | None:
        """Say why a value is none of this metric."""
        if self.kind is MetricKind.BINARY:
            return None if value_micro == MICRO or value_micro == 0 else "must be 0 or 1"  # noqa: PLR1714  # a set is made anew each time
        if not -_LIMIT_MICRO <= value_micro <= _LIMIT_MICRO:
            return f"must be within {VALUE_LIMIT} to either side"
        if self.kind is MetricKind.COUNT and (value_micro < 0 or value_micro % MICRO):
            return "must be a whole number, 0 or more"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What of an experiment decides about its exposures and outcomes."""

    experiment_no: int
    experiment_id: str
    version: int
    state: ExperimentState
    variants: tuple[str, ...]
    epochs: frozenset[int]
    metrics: tuple[MetricRules, ...]
    early: timedelta
    bucket_s: int

    @classmethod
    def of(cls, experiment: Experiment) -> "Rules":
        """Return the rules of an experiment."""
        definition = experiment.definition
        return cls(
            experiment_no=experiment.experiment_no,
            experiment_id=experiment.experiment_id,
            version=experiment.version,
            state=experiment.state,
            variants=definition.names,
            epochs=frozenset(epoch.epoch for epoch in experiment.epochs),
            metrics=tuple(map(_metric_rules, definition.metrics)),
            early=timedelta(seconds=definition.early_s),
            bucket_s=definition.bucket_s,
        )

    def bucket_of(self, moment: datetime) -> int:
        """Return the beginning of a moment's bucket, in seconds since 1970."""
        return int(moment.timestamp() // self.bucket_s) * self.bucket_s


class Exposure(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The variant that a unit has. A struct: made for each unit, in a tenth of the time."""

    variant_no: int
    epoch: int
    probability: float
    exposed_at: datetime


class Kept(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An outcome that is in the database, or is about to be."""

    metric_no: int
    value_micro: int
    occurred_at: datetime
    status: OutcomeStatus


@dataclass(slots=True, kw_only=True)
class Loaded:
    """What requests are decided on.

    `units` has every unit that has a row; None stands for one that has no exposure. A unit that is
    not there has neither outcomes nor values. `values` are (outcomes, total, value).
    """

    now: datetime
    rules: Mapping[int, Rules]
    units: Mapping[UnitKey, Exposure | None]
    outcomes: Mapping[OutcomeKey, Kept] = field(default_factory=dict)
    waiting: Mapping[UnitKey, Mapping[str, Kept]] = field(default_factory=dict)
    values: Mapping[ValueKey, tuple[int, int, int]] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Plan:
    """Results in the order of the requests, and everything that is to be written.

    Plain tuples and lists, which go to the driver as they are.
    """

    now: datetime
    results: list[Decided] = field(default_factory=list)
    exposures: dict[UnitKey, tuple[Exposure, bytes | None]] = field(default_factory=dict)
    awaited: set[UnitKey] = field(default_factory=set)
    """Units without a row that need one, though they have no exposure yet."""
    outcomes: dict[OutcomeKey, Kept] = field(default_factory=dict)
    settled: dict[OutcomeKey, OutcomeStatus] = field(default_factory=dict)
    values: dict[ValueKey, tuple[int, int, int]] = field(default_factory=dict)
    arm_exposures: dict[tuple[int, int, int, int], int] = field(default_factory=dict)
    """By experiment, epoch, variant and bucket: units."""
    arm_statistics: dict[tuple[int, int, int, int, int], list[int]] = field(default_factory=dict)
    """By experiment, epoch, variant, metric and bucket: units, total, squares."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to write."""
        return not (self.exposures or self.outcomes)


def plan(loaded: Loaded, requests: Sequence[Request]) -> Plan:
    """Decide requests in their order, and say what is to be written."""
    planned = Plan(now=loaded.now)
    counter = _Counter(loaded, planned)
    expose, record, decided = counter.expose, counter.record, planned.results.append
    for request in requests:
        decided(record(request) if type(request) is Record else expose(request))  # type: ignore[arg-type]  # there are two kinds
    return planned


class _Counter:
    """Decides request after request; what the earlier ones changed is seen by the later ones."""

    __slots__ = ("_loaded", "_now", "_plan", "_rules", "_waiting")

    def __init__(self, loaded: Loaded, planned: Plan) -> None:
        self._loaded = loaded
        self._now = loaded.now
        self._rules = loaded.rules
        self._plan = planned
        self._waiting: dict[UnitKey, list[str]] = {}

    def expose(self, request: Expose) -> Exposed | ShadowError:
        unit = (request.experiment_no, request.unit_id)
        rules = self._rules.get(request.experiment_no)
        if rules is None:
            return ExperimentNotFound(experiment_id=str(request.experiment_no))
        known = self._exposure_of(unit)
        if known is not None:
            return _exposed(known, is_new=False)
        if (refusal := _refusal(rules, request)) is not None:
            return refusal
        exposure = Exposure(
            variant_no=request.variant_no,
            epoch=request.epoch,
            probability=request.probability,
            exposed_at=request.exposed_at or self._now,
        )
        self._plan.exposures[unit] = (exposure, request.attributes)
        self._plan.awaited.discard(unit)
        bucket = rules.bucket_of(exposure.exposed_at)
        arm = (request.experiment_no, exposure.epoch, exposure.variant_no, bucket)
        self._plan.arm_exposures[arm] = self._plan.arm_exposures.get(arm, 0) + 1
        self._settle(rules, unit, exposure)
        return _exposed(exposure, is_new=True)

    def record(self, request: Record) -> Recorded | ShadowError:
        number, unit_id = request.experiment_no, request.unit_id
        rules = self._rules.get(number)
        if rules is None:
            return ExperimentNotFound(experiment_id=str(number))
        key = (number, unit_id, request.outcome_id)
        known = self._plan.outcomes.get(key) or self._loaded.outcomes.get(key)
        if known is not None:
            return self._repeated(rules, request, known)
        if not 0 <= request.metric_no < len(rules.metrics):
            return _metric_unknown(rules, request.metric_no)
        metric = rules.metrics[request.metric_no]
        if (fault := metric.fault(request.value_micro)) is not None:
            return ValueInvalid(metric=metric.name, fault=fault)
        occurred_at = request.occurred_at or self._now
        exposure = self._exposure_of((number, unit_id))
        if exposure is None:
            if not self._may_wait(rules, occurred_at):
                return _cannot_wait(rules, unit_id)
            status = _WAITING
            self._wait((number, unit_id), request.outcome_id)
        else:
            status = _status_of(rules, metric, exposure, occurred_at)
        kept = Kept(
            metric_no=request.metric_no, value_micro=request.value_micro,
            occurred_at=occurred_at, status=status,
        )  # fmt: skip
        self._plan.outcomes[key] = kept
        if exposure is not None and status is _COUNTED:
            self._count(rules, unit_id, exposure, kept)
        return _NEW[status]

    def _exposure_of(self, unit: UnitKey) -> Exposure | None:
        planned = self._plan.exposures.get(unit)
        return self._loaded.units.get(unit) if planned is None else planned[0]

    def _repeated(self, rules: Rules, request: Record, known: Kept) -> Recorded | OutcomeReused:
        """Answer for an outcome that is there; its time may be left out again."""
        is_same = (
            known.metric_no == request.metric_no
            and known.value_micro == request.value_micro
            and request.occurred_at in {None, known.occurred_at}
        )
        if is_same:
            key = (request.experiment_no, request.unit_id, request.outcome_id)
            return _KNOWN[self._plan.settled.get(key, known.status)]
        return OutcomeReused(
            experiment_id=rules.experiment_id,
            unit_id=request.unit_id,
            outcome_id=request.outcome_id,
        )

    def _may_wait(self, rules: Rules, occurred_at: datetime) -> bool:
        """Whether an exposure may still come for which an outcome would count."""
        is_awaited = rules.state in {ExperimentState.RUNNING, ExperimentState.PAUSED}
        return is_awaited and self._now - occurred_at <= rules.early

    def _wait(self, unit: UnitKey, outcome_id: str) -> None:
        self._waiting.setdefault(unit, []).append(outcome_id)
        if unit not in self._loaded.units:
            self._plan.awaited.add(unit)

    def _settle(self, rules: Rules, unit: UnitKey, exposure: Exposure) -> None:
        """Decide about the outcomes that waited for an exposure, older ones and of this batch."""
        number, unit_id = unit
        for outcome_id, kept in self._loaded.waiting.get(unit, {}).items():
            status = _status_of(rules, rules.metrics[kept.metric_no], exposure, kept.occurred_at)
            self._plan.settled[number, unit_id, outcome_id] = status
            if status is _COUNTED:
                self._count(rules, unit_id, exposure, kept)
        for outcome_id in self._waiting.pop(unit, ()):
            key = (number, unit_id, outcome_id)
            kept = self._plan.outcomes[key]
            status = _status_of(rules, rules.metrics[kept.metric_no], exposure, kept.occurred_at)
            self._plan.outcomes[key] = Kept(
                metric_no=kept.metric_no, value_micro=kept.value_micro,
                occurred_at=kept.occurred_at, status=status,
            )  # fmt: skip
            if status is _COUNTED:
                self._count(rules, unit_id, exposure, kept)

    def _count(self, rules: Rules, unit_id: str, exposure: Exposure, kept: Kept) -> None:
        """Move the unit's value by an outcome, and the sums by as much."""
        number, metric_no, added = rules.experiment_no, kept.metric_no, kept.value_micro
        values, place = self._plan.values, (rules.experiment_no, unit_id, metric_no)
        before = values.get(place) or self._loaded.values.get(place)
        arm = (
            number, exposure.epoch, exposure.variant_no, metric_no,
            rules.bucket_of(exposure.exposed_at),
        )  # fmt: skip
        sums = self._plan.arm_statistics.get(arm)
        if sums is None:
            sums = self._plan.arm_statistics[arm] = [0, 0, 0]
        if before is None:
            values[place] = (1, added, added)
            sums[0] += 1
            sums[1] += added
            sums[2] += added * added
            return
        outcomes, total, value = before
        outcomes, total = outcomes + 1, total + added
        moved = rules.metrics[metric_no].combine(value, added, total, outcomes)
        values[place] = (outcomes, total, moved)
        sums[1] += moved - value
        sums[2] += moved * moved - value * value


def _metric_rules(metric: Metric) -> MetricRules:
    return MetricRules(
        name=metric.name,
        kind=metric.kind,
        window=timedelta(seconds=metric.window_s),
        combine=_COMBINE[metric.unit_value],
    )


def _highest(value: int, added: int, _total: int, _outcomes: int) -> int:
    return max(value, added)


def _sum(_value: int, _added: int, total: int, _outcomes: int) -> int:
    return total


def _mean(_value: int, _added: int, total: int, outcomes: int) -> int:
    return total // outcomes


_COMBINE: Final[Mapping[PerUnit, Callable[[int, int, int, int], int]]] = {
    PerUnit.MAX: _highest,
    PerUnit.SUM: _sum,
    PerUnit.MEAN: _mean,
}


def _exposed(exposure: Exposure, *, is_new: bool) -> Exposed:
    return Exposed(
        variant_no=exposure.variant_no, epoch=exposure.epoch, probability=exposure.probability,
        exposed_at=exposure.exposed_at, is_new=is_new,
    )  # fmt: skip


def _refusal(rules: Rules, request: Expose) -> ShadowError | None:
    if rules.state is not ExperimentState.RUNNING:
        return ExperimentNotRunning(experiment_id=rules.experiment_id, state=rules.state)
    if not 0 <= request.variant_no < len(rules.variants):
        return VariantUnknown(
            experiment_id=rules.experiment_id, variant=str(request.variant_no), known=rules.variants
        )
    if request.epoch not in rules.epochs:
        return EpochUnknown(experiment_id=rules.experiment_id, epoch=request.epoch)
    return None


def _metric_unknown(rules: Rules, metric_no: int) -> MetricUnknown:
    known = tuple(metric.name for metric in rules.metrics)
    return MetricUnknown(experiment_id=rules.experiment_id, metric=str(metric_no), known=known)


def _cannot_wait(rules: Rules, unit_id: str) -> ShadowError:
    if rules.state is ExperimentState.DRAFT:
        return ExperimentNotRunning(experiment_id=rules.experiment_id, state=rules.state)
    return UnitNotExposed(experiment_id=rules.experiment_id, unit_id=unit_id)


def _status_of(
    rules: Rules, metric: MetricRules, exposure: Exposure, occurred_at: datetime
) -> OutcomeStatus:
    after = occurred_at - exposure.exposed_at
    if after > metric.window:
        return OutcomeStatus.OUTSIDE_WINDOW
    return _COUNTED if after >= -rules.early else OutcomeStatus.BEFORE_EXPOSURE
