"""Probability laws of many arms at once, on a line where each is smooth. Pure.

A law holds one row per arm. Its densities are those of an *axis*: the logit of a rate, the
logarithm of a count, a continuous value itself. There they have no singularity at a border, and the
same panels serve an arm without data and one that has nothing but successes.

Densities are taken relative to the mode, and factorials by the error of Stirling's formula, so that
nothing is lost with 10**9 units.

Source: Loader, "Fast and Accurate Computation of Binomial Probabilities" (2000).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import exp, inf, lgamma, log, log1p, sqrt
from typing import Self

import numpy as np
from scipy import special

from tollkeeper.shadow.quadrature import Array, Extent, Grid, edges_of

TAIL_LOG = 42.0
"""A tail is left out where the density has fallen by e**42, to 6e-19 of its highest."""

STEP_SD = 2.0
"""Width of a panel, in standard deviations of the narrowest density there."""

STEP_LIMIT = 3.0
"""Widest panel on a logit or logarithmic axis: the poles are at distance pi."""

TAIL_MASS = 1e-17
"""What is left out of each tail of a Student law."""

TAIL_SHARE = 0.45
"""Width of a panel in a Student law's tail, as a share of the distance to the center."""

_HALF_LOG_TAU = 0.9189385332046727
_STIRLING_FROM = 16.0
_LARGE_SHAPE = 1e6
_FAR_SD = 4.4


@dataclass(frozen=True, slots=True, kw_only=True)
class Law(ABC):
    """Laws of one family, one row per arm; every parameter has shape `(n,)`."""

    @classmethod
    def stacked(cls, laws: Sequence["Law"]) -> Self:
        """Return one law with the rows of all.

        Raises:
            TypeError: They are not of this family.
        """
        if not all(type(law) is cls for law in laws):
            raise TypeError("laws of different families cannot be compared")
        columns = {
            each.name: np.concatenate([getattr(law, each.name) for law in laws])
            for each in fields(cls)
        }
        return cls(**columns)

    @abstractmethod
    def extents(self) -> list[Extent]:
        """Return where on the axis each density is."""

    @abstractmethod
    def log_density(self, axis: Array) -> Array:
        """Return logarithms of the densities per unit of the axis, shape `(n, len(axis))`."""

    @abstractmethod
    def slope(self, axis: Array) -> Array:
        """Return the metric's change per unit of the axis."""

    def widest_panel(self) -> float:
        """Return the widest panel over which `slope` is as good as a polynomial."""
        return inf

    def density(self, axis: Array) -> Array:
        """Return the densities per unit of the axis, shape `(n, len(axis))`."""
        density: Array = np.exp(self.log_density(axis))
        return density

    def grid(self) -> Grid:
        """Return panels over everything that any of the arms reaches."""
        extents = self.extents()
        low, high = min(each.low for each in extents), max(each.high for each in extents)
        everything = Extent(low=low, high=high, step=self.widest_panel())
        return Grid.of_edges(edges_of([*extents, everything], low, high))


@dataclass(frozen=True, slots=True, kw_only=True)
class PositiveLaw(Law):
    """Laws of something that is never negative, so that ratios have an order."""

    def widest_panel(self) -> float:
        """Return a panel that is far from the poles of the logit."""
        return STEP_LIMIT

    @abstractmethod
    def scaled_axis(self, axis: Array, ratio: float) -> tuple[Array, Array]:
        """Return where on the axis a `ratio`-th of each value is, and how fast that moves.

        `ratio` is 1 or more.
        """

    @abstractmethod
    def raised_extent(self, ratio: float) -> Extent:
        """Return where on the axis `ratio` times the values of a law of one row are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BetaLaw(PositiveLaw):
    """Rates; the axis is the logit."""

    alpha: Array
    beta: Array

    def extents(self) -> list[Extent]:
        """Return bounds of the cumulant function of the logit, and two standard deviations."""
        return [
            _beta_extent(alpha, beta)
            for alpha, beta in zip(self.alpha.tolist(), self.beta.tolist(), strict=True)
        ]

    def log_density(self, axis: Array) -> Array:
        """Return those of the logit, taken from the rarer side so that nothing cancels."""
        is_mirrored = self.alpha > self.beta
        few = np.where(is_mirrored, self.beta, self.alpha)[:, None]
        many = np.where(is_mirrored, self.alpha, self.beta)[:, None]
        units = few + many
        mode = np.log(few) - np.log(many)
        from_mode = np.where(is_mirrored, -1.0, 1.0)[:, None] * axis - mode
        log_density: Array = few * from_mode - units * np.log1p(few / units * np.expm1(from_mode))
        highest = (
            0.5 * (np.log(few) + np.log(many) - np.log(units))
            - _HALF_LOG_TAU
            - stirling_error(few)
            - stirling_error(many)
            + stirling_error(units)
        )
        log_density += highest
        return log_density

    def slope(self, axis: Array) -> Array:
        """Return p (1 - p)."""
        slope: Array = special.expit(axis) * special.expit(-axis)
        return slope

    def scaled_axis(self, axis: Array, ratio: float) -> tuple[Array, Array]:
        """Return the logit of p / ratio."""
        part = ratio * np.exp(-axis)
        whole = (ratio - 1) + part
        return -np.log(whole), part / whole

    def raised_extent(self, ratio: float) -> Extent:
        """Return where p * ratio is: up to infinity if that can be 1."""
        [extent] = self.extents()
        ends = np.array([extent.low, extent.high])
        odds_against = (np.exp(-ends) - (ratio - 1)) / ratio
        with np.errstate(divide="ignore"):
            low, high = (-np.log(np.maximum(odds_against, 0))).tolist()
        return _RaisedExtent(low=low, high=high, step=extent.step, ratio=ratio)


@dataclass(frozen=True, slots=True, kw_only=True)
class GammaLaw(PositiveLaw):
    """Counts per unit; the axis is the logarithm."""

    shape: Array
    rate: Array

    def extents(self) -> list[Extent]:
        """Return bounds of the cumulant function of the logarithm, and two standard deviations."""
        return [
            _gamma_extent(shape, rate)
            for shape, rate in zip(self.shape.tolist(), self.rate.tolist(), strict=True)
        ]

    def log_density(self, axis: Array) -> Array:
        """Return those of the logarithm."""
        shape = self.shape[:, None]
        from_mode = axis - (np.log(shape) - np.log(self.rate[:, None]))
        highest = 0.5 * np.log(shape) - _HALF_LOG_TAU - stirling_error(shape)
        with np.errstate(over="ignore"):  # so far away there is nothing
            log_density: Array = highest - shape * (np.expm1(from_mode) - from_mode)
        return log_density

    def slope(self, axis: Array) -> Array:
        """Return the count itself."""
        count: Array = np.exp(axis)
        return count

    def scaled_axis(self, axis: Array, ratio: float) -> tuple[Array, Array]:
        """Return the logarithm of count / ratio."""
        return axis - log(ratio), np.ones_like(axis)

    def raised_extent(self, ratio: float) -> Extent:
        """Return where count * ratio is."""
        [extent] = self.extents()
        shift = log(ratio)
        return replace(extent, low=extent.low + shift, high=extent.high + shift)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentLaw(Law):
    """Means of continuous values: Student's t with `freedom`, moved and scaled."""

    center: Array
    scale: Array
    freedom: Array

    def extents(self) -> list[Extent]:
        """Return the quantiles of `TAIL_MASS`; steps are narrow at the center, and wide far out."""
        far = -self.scale * special.stdtrit(self.freedom, TAIL_MASS)
        step = STEP_SD * self.scale * np.sqrt(self.freedom / (self.freedom + 3))
        rows = zip(self.center.tolist(), far.tolist(), step.tolist(), strict=True)
        return [
            Extent(low=center - far, high=center + far, step=step, center=center, share=TAIL_SHARE)
            for center, far, step in rows
        ]

    def log_density(self, axis: Array) -> Array:
        """Return those of Student's t."""
        half = self.freedom[:, None] / 2
        scale = self.scale[:, None]
        squared = ((axis - self.center[:, None]) / scale) ** 2 / (2 * half)
        highest = (
            half * np.log1p(0.5 / half)
            - 0.5
            + stirling_error(half + 0.5)
            - stirling_error(half)
            - _HALF_LOG_TAU
        )
        log_density: Array = highest - (half + 0.5) * np.log1p(squared) - np.log(scale)
        return log_density

    def slope(self, axis: Array) -> Array:
        """Return 1: the axis is the metric."""
        return np.ones_like(axis)


@dataclass(frozen=True, slots=True, kw_only=True)
class _RaisedExtent(Extent):
    """Where `ratio` times a rate is: its logit moves the faster the nearer to 1 that comes."""

    ratio: float

    def panel_end(self, place: float) -> float:
        part = self.ratio * exp(-place)
        speed = part / (self.ratio - 1 + part)
        width = min(self.step / speed, STEP_LIMIT) if speed else STEP_LIMIT
        return max(place + width, self.low)


def lower_tail(shape: float, value: Array) -> Array:
    """Return the regularised lower incomplete gamma function, also far out for large shapes."""
    share: Array = special.gammainc(shape, value)
    return _corrected(shape, value, share, is_upper=False)


def upper_tail(shape: float, value: Array) -> Array:
    """Return the regularised upper incomplete gamma function, also far out for large shapes."""
    share: Array = special.gammaincc(shape, value)
    return _corrected(shape, value, share, is_upper=True)


def _corrected(shape: float, value: Array, share: Array, *, is_upper: bool) -> Array:
    """Put the saddle-point tail where SciPy's series ends too early.

    At a shape of 10**9 that leaves out half of what lies beyond 4.5 standard deviations; this is
    within 1e-9 of it, at any shape that it is used for.

    Source: Barndorff-Nielsen (1986): sf = Q(r + log(q / r) / r), of the Gamma's deviance r.
    """
    if shape < _LARGE_SHAPE:
        return share
    with np.errstate(divide="ignore", invalid="ignore"):
        away = np.log(value / shape)
        root = np.sign(away) * np.sqrt(2 * shape * (np.expm1(away) - away))
        wald = np.sqrt(shape) * np.expm1(away)
        normal = root + np.log(wald / root) / root
    tail: Array = special.ndtr(-normal if is_upper else normal)
    is_far = np.abs(value - shape) > _FAR_SD * np.sqrt(shape)
    return np.where(is_far, tail, share)


def stirling_error(values: Array) -> Array:
    """Return by how much log Gamma exceeds Stirling's (x - 1/2) log x - x + log(2 pi)/2."""
    return np.array([_stirling_error(value) for value in values.ravel().tolist()]).reshape(
        values.shape
    )


def _stirling_error(value: float) -> float:
    if value < _STIRLING_FROM:
        return lgamma(value) - ((value - 0.5) * log(value) - value + _HALF_LOG_TAU)
    square = value * value
    series = 1 / 1188 - 691 / 360360 / square
    for term in (1 / 1680, 1 / 1260, 1 / 360, 1 / 12):
        series = term - series / square
    return series / value


def _beta_extent(alpha: float, beta: float) -> Extent:
    mode, variance = log(alpha) - log(beta), 1 / alpha + 1 / beta
    core = sqrt(2 * TAIL_LOG * variance)
    return Extent(
        low=mode - core - TAIL_LOG / alpha,
        high=mode + core + TAIL_LOG / beta,
        step=min(STEP_SD * sqrt(variance), STEP_LIMIT),
    )


def _gamma_extent(shape: float, rate: float) -> Extent:
    """Return the extent; on the right a count without data falls doubly exponentially."""
    mode = log(shape) - log(rate)
    core = sqrt(2 * TAIL_LOG / shape)
    doubly = log1p(2 * TAIL_LOG / shape)
    right = min(core, doubly) if shape * doubly < TAIL_LOG else core
    return Extent(
        low=mode - core - TAIL_LOG / shape,
        high=mode + right,
        step=min(STEP_SD / sqrt(shape), STEP_LIMIT / 3),
    )
