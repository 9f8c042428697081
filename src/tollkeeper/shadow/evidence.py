"""What a decision depends on: definition, weights and counts of an experiment at one moment. Pure.

`parse` reads the text that the database writes (`experiment_inputs`); whoever simulates builds
`Evidence` from counts. Posteriors, their comparison and the draws are made when they are asked for,
once: most looks are refused by conditions that need none of them.

Invariant: all figures come from the text and the seed alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Final

import msgspec
import numpy as np

from tollkeeper.shadow.bayes import (
    Comparison,
    Drawn,
    compare,
    monte_carlo,
    probability_best,
)
from tollkeeper.shadow.errors import InputsUnreadable
from tollkeeper.shadow.lift import Lift
from tollkeeper.shadow.model import Definition
from tollkeeper.shadow.posterior import Posterior, posterior_of
from tollkeeper.shadow.statistics import NO_STATISTICS, ArmStatistics

FORMAT: Final = 1
"""The format of inputs that is read here."""

DRAWS: Final = 10_000
"""Draws of the Monte Carlo cross-check."""

_SEEDS: Final = 2**64


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """An arm in one epoch and metric; `total` in micro-units, `squares` in their squares."""

    epoch: int
    variant: int
    metric: int
    exposed: int
    mature: int
    answered: int
    units: int
    total: int
    squares: int
    last_received_at: int | None = None
    """In microseconds since 1970."""

    @property
    def statistics(self) -> ArmStatistics:
        """The sums that a posterior is made of."""
        return ArmStatistics(units=self.units, total=self.total, squares=self.squares)


class Stretch(msgspec.Struct, frozen=True, kw_only=True):
    """An epoch: from `begun_at` (microseconds since 1970) on, units got variants by `weights`."""

    epoch: int
    begun_at: int
    weights: tuple[float, ...]


class _Inputs(msgspec.Struct, frozen=True, kw_only=True):
    format: int
    experiment_id: str
    tenant_id: str
    definition: Definition
    started_at: int | None
    as_of: int
    epochs: tuple[Stretch, ...] | None
    arms: tuple[Row, ...] | None


class _Format(msgspec.Struct, frozen=True):
    format: object = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A variant in a metric, over all epochs.

    `exposed` units were assigned, `mature` of them had their whole window, `answered` of those have
    an outcome; `statistics` are of those that count.
    """

    exposed: int = 0
    mature: int = 0
    answered: int = 0
    statistics: ArmStatistics = NO_STATISTICS
    last_received_us: int | None = None
    """When the last outcome came, in microseconds since 1970."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """An experiment at a moment. `arms` is by metric, then by variant.

    `expected` are the units that each variant should have of those exposed, by the weights they
    were assigned with; `expected_counted` the same of those that count in the primary metric.
    """

    definition: Definition
    as_of_us: int
    arms: tuple[tuple[Arm, ...], ...]
    expected: tuple[float, ...]
    expected_counted: tuple[float, ...]
    seed: int = 0
    experiment_id: str = ""
    tenant_id: str = ""
    started_at_us: int | None = None
    digest: bytes = b""
    epochs: tuple[Stretch, ...] = ()
    rows: tuple[Row, ...] = ()

    @property
    def control_no(self) -> int:
        """The control's number."""
        return self.definition.control_no

    @cached_property
    def challengers(self) -> tuple[int, ...]:
        """The numbers of all variants but the control."""
        control_no = self.control_no
        return tuple(no for no in range(len(self.definition.variants)) if no != control_no)

    @property
    def primary(self) -> tuple[Arm, ...]:
        """The arms in the metric that decides."""
        return self.arms[0]

    @cached_property
    def counted(self) -> int:
        """Units that count in the primary metric, of all arms: what the plan is measured by."""
        return sum(arm.statistics.units for arm in self.primary)

    @property
    def plan_share(self) -> float:
        """Share of the planned units that are counted; 1 when there are more."""
        return min(1.0, self.counted / self.definition.units)

    @property
    def exposed(self) -> int:
        """Units that were assigned."""
        return sum(arm.exposed for arm in self.primary)

    @cached_property
    def statistics_by_epoch(self) -> tuple[tuple[ArmStatistics, ...], ...]:
        """Every arm's statistics of the primary metric, by epoch, oldest first."""
        if not self.rows:
            return tuple((arm.statistics,) for arm in self.primary)
        found = {(row.variant, row.epoch): row.statistics for row in self.rows if row.metric == 0}
        return tuple(
            tuple(found.get((no, stretch.epoch), NO_STATISTICS) for stretch in self.epochs)
            for no in range(len(self.primary))
        )

    @property
    def looks_due(self) -> int:
        """How many of the planned looks the counted units are enough for; 0 without a plan."""
        looks = self.definition.looks
        return min(looks, self.counted * looks // self.definition.units) if looks else 0

    def posteriors(self, metric_no: int) -> tuple[Posterior, ...]:
        """Return every arm's posterior of a metric's mean.

        Raises:
            NotEnoughData: one would not be proper.
        """
        if metric_no not in self._posteriors:
            metric = self.definition.metrics[metric_no]
            self._posteriors[metric_no] = tuple(
                posterior_of(metric.kind, metric.prior or None, arm.statistics)
                for arm in self.arms[metric_no]
            )
        return self._posteriors[metric_no]

    @property
    def sign(self) -> int:
        """What the primary metric is multiplied with so that higher is better."""
        return self.definition.metrics[0].direction.sign

    @cached_property
    def p_best(self) -> tuple[float, ...]:
        """Every arm's probability of being best in the primary metric.

        Raises:
            NotEnoughData: a posterior would not be proper.
        """
        return probability_best(self.posteriors(0), sign=self.sign)

    def p_lift(self, variant_no: int, margin: float) -> float:
        """Return P(a variant is better than the control by a relative margin, or more).

        Raises:
            NotEnoughData: a posterior would not be proper.
        """
        key = variant_no, margin
        if key not in self._p_lifts:
            self._p_lifts[key] = self._lift(variant_no).at_least(margin)
        return self._p_lifts[key]

    def lift_interval(self, variant_no: int, mass: float) -> tuple[float, float]:
        """Return the equal-tailed credible interval of a variant's relative lift.

        Raises:
            NotEnoughData: a posterior would not be proper.
        """
        return self._lift(variant_no).interval(mass)

    def _lift(self, variant_no: int) -> Lift:
        posteriors = self.posteriors(0)
        return Lift(
            variant=posteriors[variant_no], control=posteriors[self.control_no], sign=self.sign
        )

    @cached_property
    def comparison(self) -> Comparison:
        """All exact figures of the primary metric, without intervals of the lift.

        Raises:
            NotEnoughData: a posterior would not be proper.
        """
        return compare(
            self.posteriors(0),
            control=self.control_no,
            sign=self.sign,
            margin=self.definition.margin,
            mass=None,
        )

    @cached_property
    def drawn(self) -> Drawn:
        """The same figures by Monte Carlo, from the seed.

        Raises:
            NotEnoughData: a posterior would not be proper.
        """
        return monte_carlo(
            self.posteriors(0),
            control=self.control_no,
            sign=self.sign,
            margin=self.definition.margin,
            draws=DRAWS,
            generator=np.random.default_rng(self.seed % _SEEDS),
        )

    def probability_worse(self, metric_no: int, variant_no: int) -> float:
        """Return P(a variant is worse than the control by the metric's tolerance, or more).

        Raises:
            NotEnoughData: a posterior would not be proper.
        """
        metric = self.definition.metrics[metric_no]
        posteriors = self.posteriors(metric_no)
        # Worse is better the other way round.
        harm = Lift(
            variant=posteriors[variant_no],
            control=posteriors[self.control_no],
            sign=-metric.direction.sign,
        )
        return harm.at_least(metric.tolerance)

    @cached_property
    def _posteriors(self) -> dict[int, tuple[Posterior, ...]]:
        return {}

    @cached_property
    def _p_lifts(self) -> dict[tuple[int, float], float]:
        return {}


def parse(text: str, *, seed: int = 0) -> Evidence:
    """Return the evidence that a text of inputs holds.

    Raises:
        InputsUnreadable: it has another format, or is none.
    """
    try:
        found = msgspec.json.decode(text, type=_Format).format
        if found != FORMAT:
            raise InputsUnreadable(fault=f"format {found}, and {FORMAT} is read here")
        inputs = msgspec.json.decode(text, type=_Inputs)
    except msgspec.MsgspecError as error:
        raise InputsUnreadable(fault=str(error)) from error
    rows, epochs = inputs.arms or (), inputs.epochs or ()
    _check_numbers(inputs.definition, epochs, rows)
    weights = {stretch.epoch: stretch.weights for stretch in epochs}
    primary = [row for row in rows if row.metric == 0]
    size = len(inputs.definition.variants)
    return Evidence(
        definition=inputs.definition,
        as_of_us=inputs.as_of,
        arms=_pooled(inputs.definition, rows),
        expected=_expected([(weights[row.epoch], row.exposed) for row in primary], size),
        expected_counted=_expected([(weights[row.epoch], row.units) for row in primary], size),
        seed=seed,
        experiment_id=inputs.experiment_id,
        tenant_id=inputs.tenant_id,
        started_at_us=inputs.started_at,
        digest=sha256(text.encode()).digest(),
        epochs=epochs,
        rows=rows,
    )


def _check_numbers(definition: Definition, epochs: Sequence[Stretch], rows: Sequence[Row]) -> None:
    arms = len(definition.variants)
    known = {stretch.epoch for stretch in epochs}
    if any(len(stretch.weights) != arms for stretch in epochs):
        raise InputsUnreadable(fault="an epoch has not one weight for each variant")
    for row in rows:
        is_known = (
            row.epoch in known
            and 0 <= row.variant < arms
            and 0 <= row.metric < len(definition.metrics)
        )
        if not is_known:
            raise InputsUnreadable(fault="an arm is of no epoch, variant or metric")


def _pooled(definition: Definition, rows: Sequence[Row]) -> tuple[tuple[Arm, ...], ...]:
    parts: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        parts.setdefault((row.metric, row.variant), []).append(row)
    return tuple(
        tuple(_arm(parts.get((metric, variant), ())) for variant in range(len(definition.variants)))
        for metric in range(len(definition.metrics))
    )


def _arm(rows: Sequence[Row]) -> Arm:
    received = [row.last_received_at for row in rows if row.last_received_at is not None]
    return Arm(
        exposed=sum(row.exposed for row in rows),
        mature=sum(row.mature for row in rows),
        answered=sum(row.answered for row in rows),
        statistics=sum((row.statistics for row in rows), NO_STATISTICS),
        last_received_us=max(received, default=None),
    )


def _expected(parts: Sequence[tuple[Sequence[float], int]], size: int) -> tuple[float, ...]:
    """Return what each variant should have of units that were assigned by these weights."""
    return tuple(
        sum((weights[variant] * units for weights, units in parts), 0.0) for variant in range(size)
    )
