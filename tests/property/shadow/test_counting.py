"""Any order, any batches: the planner's sums are what a recount of all events gives."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st
from tests.counting import expose, record, words_of
from tests.experiments import definition

from tollkeeper.kernel.ids import TenantId
from tollkeeper.shadow import counting
from tollkeeper.shadow.counting import Exposure, Kept, Loaded, Plan, Rules, UnitKey
from tollkeeper.shadow.model import (
    Epoch,
    Experiment,
    ExperimentId,
    ExperimentState,
    Expose,
    Metric,
    MetricKind,
    OutcomeStatus,
    PerUnit,
    Record,
    Request,
)

NOW = datetime(2026, 3, 29, 1, 0, 0, tzinfo=UTC)
EARLY_S = 120
METRICS = (
    Metric(name="success", kind=MetricKind.BINARY, window_s=300),
    Metric(name="orders", kind=MetricKind.COUNT, window_s=600),
    Metric(name="latency", kind=MetricKind.CONTINUOUS, window_s=300),
    Metric(name="peak", kind=MetricKind.CONTINUOUS, window_s=500, per_unit=PerUnit.MAX),
)
EXPERIMENT = Experiment(
    experiment_no=1, experiment_id=ExperimentId("checkout"), tenant_id=TenantId("acme"),
    definition=definition(metrics=METRICS, early_s=EARLY_S), state=ExperimentState.RUNNING,
    version=3, created_at=NOW, started_at=NOW,
    epochs=tuple(Epoch(epoch=n, begun_at=NOW, weights=(0.5, 0.5)) for n in (1, 2)),
)  # fmt: skip
RULES = {1: Rules.of(EXPERIMENT)}

moments = st.integers(-1_000, 200).map(lambda seconds: NOW + timedelta(seconds=seconds))
units = st.sampled_from(("ann", "bob"))
exposures = st.builds(
    lambda unit, variant, epoch, at: expose(1, unit, variant, epoch=epoch, exposed_at=at),
    units, st.integers(0, 1), st.integers(1, 2), st.none() | moments,
)  # fmt: skip
values = {
    0: st.sampled_from((0, 1)),
    1: st.integers(0, 5),
    2: st.integers(-5_000_001, 5_000_001).map(lambda micro: micro / 1_000_000),
    3: st.integers(-3, 3),
}
outcomes = st.integers(0, 3).flatmap(
    lambda metric: st.builds(
        lambda unit, name, value, at: record(
            1, unit, name, value, metric_no=metric, occurred_at=at
        ),
        units, st.sampled_from("abcdefgh"), values[metric], st.none() | moments,
    )
)  # fmt: skip
batches = st.lists(st.lists(exposures | outcomes | outcomes, max_size=8), max_size=8)


@dataclass(slots=True)
class Memory:
    """What a database keeps: applies plans, loads just what requests need."""

    units: dict[UnitKey, Exposure | None] = field(default_factory=dict)
    outcomes: dict[tuple[int, str, str], Kept] = field(default_factory=dict)
    values: dict[tuple[int, str, int], tuple[int, int, int]] = field(default_factory=dict)
    exposed: dict[tuple[int, ...], int] = field(default_factory=lambda: defaultdict(int))
    sums: dict[tuple[int, ...], list[int]] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)

    def execute(self, requests: Sequence[Request], now: datetime) -> None:
        planned = counting.plan(self._load(requests, now), requests)
        self.words += words_of(planned.results)
        self._apply(planned)

    def _load(self, requests: Sequence[Request], now: datetime) -> Loaded:
        named = {(each.experiment_no, each.unit_id) for each in requests}
        units = {unit: self.units[unit] for unit in named if unit in self.units}
        waiting = {
            unit: {
                key[2]: kept
                for key, kept in self.outcomes.items()
                if key[:2] == unit and kept.status is OutcomeStatus.WAITING
            }
            for unit, exposure in units.items()
            if exposure is None
        }
        asked = {(1, r.unit_id, r.outcome_id) for r in requests if isinstance(r, Record)}
        return Loaded(
            now=now, rules=RULES, units=units, waiting=waiting,
            outcomes={key: self.outcomes[key] for key in asked if key in self.outcomes},
            values={key: value for key, value in self.values.items() if key[:2] in named},
        )  # fmt: skip

    def _apply(self, planned: Plan) -> None:
        for unit in planned.awaited:
            assert unit not in self.units
            self.units[unit] = None
        for unit, (exposure, _) in planned.exposures.items():
            assert self.units.get(unit) is None
            self.units[unit] = exposure
        for key, kept in planned.outcomes.items():
            assert key not in self.outcomes
            assert key[:2] in self.units
            self.outcomes[key] = kept
        for key, status in planned.settled.items():
            before = self.outcomes[key]
            self.outcomes[key] = Kept(
                metric_no=before.metric_no, value_micro=before.value_micro,
                occurred_at=before.occurred_at, status=status,
            )  # fmt: skip
        self.values.update(planned.values)
        for arm, count in planned.arm_exposures.items():
            self.exposed[arm] += count
        for place, moved in planned.arm_statistics.items():
            sums = self.sums.setdefault(place, [0, 0, 0])
            self.sums[place] = [a + b for a, b in zip(sums, moved, strict=True)]


@dataclass(slots=True)
class Naive:
    """The rules in the order things happen, and a recount of everything in the end."""

    units: dict[str, Expose] = field(default_factory=dict)
    reported: dict[tuple[str, str], Record] = field(default_factory=dict)
    at: dict[int, datetime] = field(default_factory=dict)

    def decide(self, request: Request, now: datetime) -> str:
        if isinstance(request, Expose):
            if request.unit_id in self.units:
                return "exposed before"
            self.units[request.unit_id] = request
            self.at[id(request)] = request.exposed_at or now
            return "exposed"
        key = (request.unit_id, request.outcome_id)
        if (known := self.reported.get(key)) is not None:
            is_same = (
                (known.metric_no, known.value_micro) == (request.metric_no, request.value_micro)
                and request.occurred_at in {None, self.at[id(known)]}
            )  # fmt: skip
            return f"{self.status(known)} before" if is_same else "OutcomeReused"
        occurred_at = request.occurred_at or now
        if request.unit_id not in self.units and (now - occurred_at).total_seconds() > EARLY_S:
            return "UnitNotExposed"
        self.reported[key] = request
        self.at[id(request)] = occurred_at
        return self.status(request)

    def status(self, request: Record) -> str:
        if request.unit_id not in self.units:
            return "waiting"
        exposed_at = self.at[id(self.units[request.unit_id])]
        after_s = (self.at[id(request)] - exposed_at).total_seconds()
        if after_s > METRICS[request.metric_no].window_s:
            return "outside_window"
        return "before_exposure" if after_s < -EARLY_S else "counted"

    def sums(self) -> dict[tuple[int, ...], list[int]]:
        found: dict[tuple[int, ...], list[int]] = {}
        for unit_id, exposure in self.units.items():
            for metric_no in range(len(METRICS)):
                counted = [
                    each.value_micro
                    for each in self.reported.values()
                    if each.unit_id == unit_id and each.metric_no == metric_no
                    and self.status(each) == "counted"
                ]  # fmt: skip
                if not counted:
                    continue
                value = self.value(metric_no, counted)
                arm = (1, exposure.epoch, exposure.variant_no, metric_no, self.bucket(exposure))
                units, total, squares = found.get(arm, (0, 0, 0))
                found[arm] = [units + 1, total + value, squares + value**2]
        return found

    def exposed(self) -> dict[tuple[int, ...], int]:
        found: dict[tuple[int, ...], int] = defaultdict(int)
        for each in self.units.values():
            found[1, each.epoch, each.variant_no, self.bucket(each)] += 1
        return found

    def bucket(self, exposure: Expose) -> int:
        seconds = int(self.at[id(exposure)].timestamp() // 1)
        return seconds - seconds % 6  # the smallest window is 300 s

    def value(self, metric_no: int, counted: list[int]) -> int:
        if metric_no in {0, 3}:
            return max(counted)
        return sum(counted) if metric_no == 1 else sum(counted) // len(counted)


@given(batches)
def test_sums_and_answers_are_those_of_a_recount_of_all_events(
    batches: list[list[Request]],
) -> None:
    memory, naive, expected = Memory(), Naive(), list[str]()
    for number, batch in enumerate(batches):
        now = NOW + timedelta(seconds=10 * number)
        memory.execute(batch, now)
        expected += [naive.decide(request, now) for request in batch]

    assert expected == memory.words
    assert naive.sums() == {key: sums for key, sums in memory.sums.items() if sums != [0, 0, 0]}
    assert naive.exposed() == memory.exposed
    assert {
        (1, unit_id, outcome_id): naive.status(each)
        for (unit_id, outcome_id), each in naive.reported.items()
    } == {key: kept.status.name.lower() for key, kept in memory.outcomes.items()}


@given(batches, st.randoms(use_true_random=False), st.integers(1, 5))
def test_no_order_and_no_partition_into_batches_makes_a_difference(
    batches: list[list[Request]], dice: random.Random, size: int
) -> None:
    """Each unit is exposed once, and each id stands for one outcome that is not too old to wait."""
    events: dict[object, Request] = {}
    for each in (request for batch in batches for request in batch):
        if isinstance(each, Expose):
            events.setdefault(each.unit_id, each)
        elif each.occurred_at is None or (NOW - each.occurred_at).total_seconds() <= EARLY_S:
            events.setdefault((each.unit_id, each.outcome_id), each)
    ordered, shuffled = list(events.values()), [*events.values(), *events.values()]
    dice.shuffle(shuffled)
    once, again = Memory(), Memory()
    once.execute(ordered, NOW)
    for start in range(0, len(shuffled), size):
        again.execute(shuffled[start : start + size], NOW)

    assert once.units == again.units
    assert once.outcomes == again.outcomes
    assert once.values == again.values
    assert once.exposed == again.exposed
    assert once.sums == again.sums
