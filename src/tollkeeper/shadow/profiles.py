"""The gate's profiles: named, versioned thresholds, and how often each errs. Pure data.

Invariant: a profile that was released never changes; other thresholds are another version. The
rates are measured with the gate itself (`tollkeeper shadow simulate`), with the runs they state.
"""

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from tollkeeper.shadow.errors import ProfileUnknown

WILSON_Z: Final = 1.959963984540054
"""Two-sided 95 %."""


def wilson(hits: int, runs: int) -> tuple[float, float]:
    """Return the 95 % interval of a rate (Wilson, 1927, JASA 22:209), within 0 and 1."""
    if runs == 0:
        return 0.0, 1.0
    share, square = hits / runs, WILSON_Z**2
    middle = share + square / (2 * runs)
    reach = WILSON_Z * math.sqrt(share * (1 - share) / runs + square / (4 * runs * runs))
    scale = 1 + square / runs
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class Characteristics:
    """How often a profile said `deploy` in simulated experiments of one setting.

    `lift` is the true one, of one variant against all others: with 0, `deploys` are false. They
    are runs in which any look said so. The margin is 0.05, the seed 0.
    """

    lift: float
    deploys: int
    runs: int = 4_000
    rate: float = 0.10
    arms: int = 2
    units: int = 10_000
    looks: int = 50
    adaptive: bool = False

    @property
    def deploy_rate(self) -> float:
        """Share of the experiments in which a variant might have been deployed."""
        return self.deploys / self.runs

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of that share."""
        return wilson(self.deploys, self.runs)

    @property
    def setting(self) -> str:
        """The experiments, in words."""
        weights = "adaptive" if self.adaptive else "fixed"
        lift = f"lift {self.lift:+.0%}" if self.lift else "no lift"
        return (
            f"rate {self.rate:g}, {lift}, {self.arms} arms, {self.units:,} units, "
            f"{self.looks} looks, {weights} weights"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Thresholds of the gate. None: the condition is not asked for."""

    name: str
    description: str
    least_probability: float = 0.95
    """P(best) must be above it."""
    least_units: int = 100
    """Counted units in every arm."""
    least_lift: float = 0.05
    """Relative difference of the sample means; the experiment's margin, if that is more."""
    least_lift_probability: float | None = None
    """P(lift >= margin) must be above it."""
    false_deploys: float | None = None
    """The sequential boundary keeps false deploys below this share, however often one looks."""
    caring: float | None = None
    """Expected loss that nobody cares about, as a share of the control's mean."""
    least_successes: int | None = None
    """Successes in candidate and control each, of a binary metric."""
    least_failures: int = 5
    most_dispersion: float | None = None
    """Variance over mean of a count metric: 1 is Poisson's, more makes its posterior too sure."""
    plans_looks: bool = False
    """Only planned looks decide."""
    least_ratio_p: float | None = None
    """p of the sample-ratio test."""
    guardrail_doubt: float | None = None
    """P(guardrail harmed) must be below it; above `guardrail_harm` the variant is rejected."""
    guardrail_harm: float = 0.95
    fresh: timedelta | None = None
    """Age of the last outcome."""
    least_answered: float | None = None
    """Share of mature units that have an outcome."""
    most_disagreement: float | None = None
    """Standard errors between exact figures and Monte Carlo."""
    hopeless: float = 0.05
    """P(better than the control) below which a candidate is rejected."""
    hopeless_share: float = 0.0
    """Share of the planned units before which nothing is called hopeless."""
    lifetime: timedelta = timedelta(hours=24)
    """How long a verdict `deploy` holds."""
    warning: str = ""
    characteristics: tuple[Characteristics, ...] = ()

    @property
    def false_deploy(self) -> Characteristics | None:
        """The setting without a difference in which the profile errs most often."""
        null = [each for each in self.characteristics if each.lift == 0]
        return max(null, key=lambda each: each.deploy_rate, default=None)

    @property
    def powers(self) -> tuple[Characteristics, ...]:
        """The settings with a true lift."""
        return tuple(each for each in self.characteristics if each.lift != 0)


DEFAULT: Final = Profile(
    name="default@1",
    description=(
        "the specified conditions, and a sequential boundary at planned looks, P(lift >= margin), "
        "expected loss, sample ratio, guardrails, and data that are fresh and complete"
    ),
    least_lift_probability=0.95,
    false_deploys=0.05,
    caring=0.001,
    least_successes=20,
    most_dispersion=1.25,
    plans_looks=True,
    least_ratio_p=0.001,
    guardrail_doubt=0.10,
    fresh=timedelta(hours=24),
    least_answered=0.9,
    most_disagreement=5.0,
    hopeless_share=0.25,
    characteristics=(
        Characteristics(lift=0.0, deploys=83),
        Characteristics(lift=0.0, deploys=88, adaptive=True),
        Characteristics(lift=0.0, deploys=62, runs=2_000, rate=0.02),
        Characteristics(lift=0.0, deploys=50, runs=2_000, rate=0.02, adaptive=True),
        Characteristics(lift=0.0, deploys=4, runs=2_000, rate=0.5),
        Characteristics(lift=0.0, deploys=13, runs=2_000, arms=4),
        Characteristics(lift=0.05, deploys=448),
        Characteristics(lift=0.2, deploys=3_340),
        Characteristics(lift=0.2, deploys=3_280, adaptive=True),
        Characteristics(lift=0.2, deploys=621, runs=2_000, rate=0.02),
        Characteristics(lift=0.2, deploys=2_000, runs=2_000, rate=0.5),
        Characteristics(lift=0.2, deploys=700, runs=2_000, arms=4),
    ),
)

AS_SPECIFIED: Final = Profile(
    name="as-specified@1",
    description="P(best) > 95 %, at least 100 units in every arm, and a lift of 5 %; nothing else",
    warning=(
        "this profile lets through about one in four variants that are no better than the control, "
        "because it is asked again and again; use default@1"
    ),
    characteristics=(
        Characteristics(lift=0.0, deploys=965),
        Characteristics(lift=0.0, deploys=933, adaptive=True),
        Characteristics(lift=0.2, deploys=3_902),
        Characteristics(lift=0.2, deploys=3_892, adaptive=True),
    ),
)

PROFILES: Final = {profile.name: profile for profile in (DEFAULT, AS_SPECIFIED)}


def profile_of(name: str) -> Profile:
    """Return a profile by its name and version.

    Raises:
        ProfileUnknown: there is none of this name.
    """
    if name not in PROFILES:
        raise ProfileUnknown(profile=name, known=tuple(PROFILES))
    return PROFILES[name]
