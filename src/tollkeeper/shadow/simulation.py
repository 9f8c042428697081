"""Operating characteristics: how often a gate profile deploys what is no better. Pure.

Experiments of a binary metric are drawn, and the production gate judges them at every look. Each
run has a generator of its own, of seed, lift and number: results are the same in however many
processes.

The count of deployments is of any look, also after a verdict `reject` that somebody overlooked: so
false deploys are not made to look rarer than they are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count, pairwise, repeat
from typing import Final, NamedTuple

import msgspec
import numpy as np

from tollkeeper.shadow.decision import weights_after
from tollkeeper.shadow.evidence import Arm, Evidence, Row, Stretch
from tollkeeper.shadow.gate import candidate_of, is_deployable, is_hopeless
from tollkeeper.shadow.model import Adaptive, Definition, Metric, MetricKind, Variant
from tollkeeper.shadow.profiles import DEFAULT, Profile, profile_of, wilson
from tollkeeper.shadow.statistics import ArmStatistics

RUNS_LIMIT: Final = 1_000_000

CHUNK: Final = 20
"""Runs that a process makes before it reports."""

_SEEDS: Final = 2**63
_LIFT_KEYS: Final = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Experiments to be drawn: the last variant has the lift, all others the control's rate.

    Raises:
        ValueError: a rate is not within 0 and 1, or there are no runs.
        DefinitionInvalid: no experiment can be like this.
        ProfileUnknown: there is no such profile.
    """

    arms: int = 2
    rate: float = 0.10
    lifts: tuple[float, ...] = (0.0, 0.05, 0.20)
    looks: int = 50
    units: int = 10_000
    runs: int = 2_000
    adaptive: Adaptive | None = None
    profile: str = DEFAULT.name
    margin: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.runs <= RUNS_LIMIT:
            raise ValueError(f"runs must be 1 to {RUNS_LIMIT:,}")
        if not self.lifts:
            raise ValueError("at least one lift is needed")
        for lift in self.lifts:
            if not (0 < self.rate < 1 and 0 <= self.rate * (1 + lift) <= 1):
                raise ValueError(f"a rate of {self.rate:g} with a lift of {lift:g} cannot be")
        if self.seed < 0:
            raise ValueError("the seed must not be negative")
        assert self.definition.looks == self.looks
        assert self.gate.name == self.profile

    @cached_property
    def definition(self) -> Definition:
        """The experiment that is drawn."""
        names = ("control", *(f"variant-{no}" for no in range(1, self.arms)))
        return Definition(
            variants=tuple(Variant(name=name, weight=1 / self.arms) for name in names),
            control="control",
            metrics=(Metric(name="success", kind=MetricKind.BINARY),),
            units=self.units,
            looks=self.looks,
            margin=self.margin,
            profile=self.profile,
            adaptive=self.adaptive,
        )

    @cached_property
    def gate(self) -> Profile:
        """The profile that judges."""
        return profile_of(self.profile)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Units that are new at each look."""
        due = [-(-self.units * look // self.looks) for look in range(self.looks + 1)]
        return tuple(after - before for before, after in pairwise(due))

    def rates(self, lift: float) -> tuple[float, ...]:
        """Return the true rate of every variant."""
        return (*(self.rate for _ in range(self.arms - 1)), self.rate * (1 + lift))


class Run(NamedTuple):
    """One experiment; counts of units are 0 where it did not come to that."""

    deployed_at: int
    """Units at the first look that said `deploy`."""
    deployed_no: int
    """The variant that it was said of; 0, the control, without one."""
    hopeless_at: int
    """Units at the first look that said `reject`, before the plan was used up."""


class Chunk(NamedTuple):
    """Runs that belong together: of `lifts[lift_no]`, `size` of them from `first` on."""

    lift_no: int
    first: int
    size: int


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of the runs of one lift."""

    lift: float
    runs: int
    deploys: int
    """Runs in which a look said `deploy`."""
    deploys_after_reject: int
    """Those of them in which an earlier look had said `reject`."""
    wrong: int
    """Deployed variants that are no better than the control."""
    rejects: int
    """Runs whose first decision was `reject`, or that used up their plan."""
    mean_units: float
    """Units until the first decision."""

    @property
    def deploy_rate(self) -> float:
        """Share of the runs in which something might have been deployed."""
        return self.deploys / self.runs

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the rate of deployments (Wilson)."""
        return wilson(self.deploys, self.runs)

    @property
    def power(self) -> float:
        """Share of the runs with a `deploy` that no `reject` came before."""
        return (self.deploys - self.deploys_after_reject) / self.runs

    @property
    def reject_rate(self) -> float:
        """Share of the runs that were given up."""
        return self.rejects / self.runs


def chunks_of(setting: Setting) -> tuple[Chunk, ...]:
    """Return all runs, in chunks that can be made in any order."""
    return tuple(
        Chunk(lift_no, first, min(CHUNK, setting.runs - first))
        for lift_no in range(len(setting.lifts))
        for first in range(0, setting.runs, CHUNK)
    )


def simulate(setting: Setting, chunk: Chunk) -> tuple[Run, ...]:
    """Make the runs of a chunk."""
    return tuple(
        simulate_run(setting, chunk.lift_no, run)
        for run in range(chunk.first, chunk.first + chunk.size)
    )


def simulate_run(setting: Setting, lift_no: int, run: int) -> Run:
    """Make one run: until a look says `deploy`, or the plan is used up."""
    # By the lift itself, not its place: `--lift 0.2` alone draws the same experiments.
    key = round((1 + setting.lifts[lift_no]) * _LIFT_KEYS), run
    root = np.random.SeedSequence(setting.seed, spawn_key=key)
    generator = np.random.Generator(np.random.PCG64(root))
    hopeless_at = 0
    for look, evidence in enumerate(_evidence(setting, lift_no, generator), start=1):
        if is_deployable(evidence, setting.gate, look):
            return Run(evidence.counted, candidate_of(evidence) or 0, hopeless_at)
        if not hopeless_at and is_hopeless(evidence, setting.gate, look):
            hopeless_at = evidence.counted
    return Run(0, 0, hopeless_at)


def summarise(setting: Setting, lift_no: int, runs: Sequence[Run]) -> Outcome:
    """Return what came of the runs of one lift."""
    rates = setting.rates(setting.lifts[lift_no])
    deploys = [run for run in runs if run.deployed_at]
    ends = [run.hopeless_at or run.deployed_at or setting.units for run in runs]
    after = sum(run.hopeless_at > 0 for run in deploys)
    return Outcome(
        lift=setting.lifts[lift_no],
        runs=len(runs),
        deploys=len(deploys),
        deploys_after_reject=after,
        wrong=sum(rates[run.deployed_no] <= rates[0] for run in deploys),
        rejects=len(runs) - len(deploys) + after,
        mean_units=sum(ends) / len(ends),
    )


def _evidence(setting: Setting, lift_no: int, generator: np.random.Generator) -> Iterator[Evidence]:
    """Yield what is there at each look."""
    rates = np.array(setting.rates(setting.lifts[lift_no]))
    weights = np.array(setting.definition.weights)
    units = np.zeros(setting.arms, dtype=np.int64)
    successes, expected = np.zeros_like(units), np.zeros(setting.arms)
    seeds = generator.integers(_SEEDS, size=setting.looks).tolist()
    stretches: list[Stretch] = []
    rows: list[Row] = []
    for size, seed in zip(setting.sizes, seeds, strict=True):
        new = generator.multinomial(size, weights)
        units = units + new
        won = generator.binomial(new, rates)
        successes = successes + won
        if setting.adaptive is not None:
            # An epoch for each look: where the weights stayed, one more stratum costs nothing.
            epoch = len(stretches) + 1
            stretches.append(Stretch(epoch=epoch, begun_at=0, weights=tuple(weights.tolist())))
            rows += map(_row, repeat(epoch), count(), new.tolist(), won.tolist())
        expected = expected + size * weights
        arms = tuple(map(_arm, units.tolist(), successes.tolist()))
        shares = tuple(expected.tolist())
        evidence = Evidence(
            definition=setting.definition,
            as_of_us=0,
            arms=(arms,),
            expected=shares,
            expected_counted=shares,
            seed=seed,
            epochs=tuple(stretches),
            rows=tuple(rows),
        )
        yield evidence
        if setting.adaptive is not None:
            weights = np.array(weights_after(evidence))


def _row(epoch: int, variant: int, units: int, successes: int) -> Row:
    """Return what an arm gained in an epoch."""
    statistics = ArmStatistics.of_successes(units, successes)
    return Row(
        epoch=epoch,
        variant=variant,
        metric=0,
        exposed=units,
        mature=units,
        answered=units,
        units=units,
        total=statistics.total,
        squares=statistics.squares,
    )


def _arm(units: int, successes: int) -> Arm:
    """Return an arm all of whose units have answered."""
    return Arm(
        exposed=units,
        mature=units,
        answered=units,
        statistics=ArmStatistics.of_successes(units, successes),
        last_received_us=0,
    )
