"""What is known of an arm: sufficient statistics, exact and additive. Pure.

`ArmStatistics` are whole numbers, so sums are the same in any order and in any database.
`Moments` are what a posterior is made from: the same in the metric's unit, and possibly with units
that count in part. The sum of squared deviations is taken from whole numbers: subtracting two
floats that are nearly the same would leave nothing of it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite

from tollkeeper.shadow.model import MICRO


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """How many units, the sum of their values, and of their squared deviations from the mean.

    Raises:
        ValueError: A number is negative that cannot be, not finite, or there are no units for it.
    """

    units: float
    total: float
    spread: float

    def __post_init__(self) -> None:
        if not (isfinite(self.units) and isfinite(self.total) and isfinite(self.spread)):
            raise ValueError("moments must be finite")
        if self.units < 0 or self.spread < 0:
            raise ValueError("units and spread must not be negative")
        if self.units == 0 and (self.total != 0 or self.spread != 0):
            raise ValueError("without units there is no total and no spread")

    @property
    def mean(self) -> float:
        """Mean value of a unit; 0 without units."""
        return self.total / self.units if self.units else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmStatistics:
    """Units of an arm, the sum of their values (micro) and of their squares (micro squared).

    Raises:
        ValueError: No values of so many units have these sums.
    """

    units: int
    total: int
    squares: int

    def __post_init__(self) -> None:
        if self.units < 0 or self.squares < 0:
            raise ValueError("units and squares must not be negative")
        if self.squares * self.units < self.total**2:
            raise ValueError("no values have this total and these squares")
        if self.units == 0 and (self.total, self.squares) != (0, 0):
            raise ValueError("without units there is no total and no square")

    def __add__(self, other: "ArmStatistics") -> "ArmStatistics":
        return ArmStatistics(
            units=self.units + other.units,
            total=self.total + other.total,
            squares=self.squares + other.squares,
        )

    @classmethod
    def of_values(cls, values_micro: Iterable[int]) -> "ArmStatistics":
        """Return the statistics of units with these values, in micro."""
        values = tuple(values_micro)
        return cls(
            units=len(values), total=sum(values), squares=sum(value * value for value in values)
        )

    @classmethod
    def of_successes(cls, units: int, successes: int) -> "ArmStatistics":
        """Return the statistics of a binary metric: so many of the units have the value 1."""
        if not 0 <= successes <= units:
            raise ValueError("successes must be 0 or more, and not more than the units")
        return cls(units=units, total=successes * MICRO, squares=successes * MICRO**2)

    @property
    def mean(self) -> float:
        """Mean value of a unit, in the metric's unit; 0 without units."""
        return self.total / (self.units * MICRO) if self.units else 0.0

    @property
    def variance(self) -> float:
        """Variance of the units' values (n - 1), in the metric's unit squared; 0 below 2 units."""
        if self.units < 2:
            return 0.0
        deviations = self.squares * self.units - self.total**2
        return deviations / (self.units * (self.units - 1) * MICRO**2)

    @property
    def successes(self) -> int:
        """Units with the value 1, of a binary metric."""
        return self.total // MICRO

    @property
    def moments(self) -> Moments:
        """The same in the metric's unit."""
        if not self.units:
            return NO_MOMENTS
        deviations = self.squares * self.units - self.total**2
        return Moments(
            units=float(self.units),
            total=self.total / MICRO,
            spread=deviations / (self.units * MICRO**2),
        )


NO_MOMENTS = Moments(units=0.0, total=0.0, spread=0.0)
NO_STATISTICS = ArmStatistics(units=0, total=0, squares=0)


def weighted(moments: Sequence[Moments], weights: Sequence[float]) -> Moments:
    """Return the moments of all together, where a unit of the i-th counts `weights[i]`.

    Raises:
        ValueError: A weight is negative, or there is not one for each.
    """
    if len(moments) != len(weights) or any(weight < 0 for weight in weights):
        raise ValueError("moments need a weight of 0 or more each")
    pairs = [
        (each, weight)
        for each, weight in zip(moments, weights, strict=True)
        if weight * each.units > 0
    ]
    units = sum(weight * each.units for each, weight in pairs)
    if units == 0:
        return NO_MOMENTS
    total = sum(weight * each.total for each, weight in pairs)
    mean = total / units
    within = sum(weight * each.spread for each, weight in pairs)
    between = sum(weight * each.units * (each.mean - mean) ** 2 for each, weight in pairs)
    return Moments(units=units, total=total, spread=within + between)
