"""One experiment from its first unit to its deployment, over HTTP, with made-up traffic.

Part of `tollkeeper demo`. The variants' outcomes come from a seed, a sequence for each variant, so
every demo ends alike, whichever units its experiment's id deals to which variant.
"""

import random  # noqa: TID251  # seeded by the caller: the same traffic every time
from collections import Counter
from dataclasses import dataclass

import msgspec

from tollkeeper.client.errors import AnswerMalformed
from tollkeeper.client.shadow import ShadowClient
from tollkeeper.client.shadow_messages import Deployment, Outcome
from tollkeeper.client.terminal import Fact, Screen
from tollkeeper.kernel.clock import Clock
from tollkeeper.kernel.errors import TollkeeperError
from tollkeeper.shadow.explain_cli import differences_of
from tollkeeper.shadow.tables import probability_text

RATES = {"control": 0.10, "new": 0.13}
"""True share of units that buy, by variant; the control is the first."""

UNITS, LOOKS, MARGIN = 10_000, 50, 0.05
"""The plan: the usual one, which is also the one that the gate's rates are measured for."""

BATCH = 200
"""Units that come together: as many as between two looks."""

METRIC = "purchase"


class _Arm(msgspec.Struct, frozen=True):
    variant: str
    probability_best: float | None = None
    lift: float | None = None


class _Look(msgspec.Struct, frozen=True):
    look: int
    verdict: str


class _Shown(msgspec.Struct, frozen=True):
    arms: tuple[_Arm, ...]
    last_look: _Look | None = None


@dataclass(eq=False, kw_only=True)
class TrafficRefused(TollkeeperError):
    """The service did not take a unit or an outcome of the demo."""

    reason: str

    def message(self) -> str:
        """Say what it said."""
        return f"the experiment's traffic was refused: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """How the experiment ended; without a deployment it did not end as it must."""

    experiment_id: str
    units: int
    purchases: int
    looks: int
    verdict: str
    probability_best: float | None
    lift: float | None
    seconds: float
    deployment: Deployment | None = None
    differences: tuple[str, ...] = ()
    """Between the decision as it is kept, and as it was computed anew here."""

    @property
    def is_good(self) -> bool:
        """Whether the better variant was proven, deployed, and can be decided again bit for bit."""
        return self.deployment is not None and not self.differences

    def document(self) -> dict[str, object]:
        """Return what `--json` prints."""
        return {
            "experiment_id": self.experiment_id, "units": self.units, "purchases": self.purchases,
            "looks": self.looks, "verdict": self.verdict, "lift": self.lift,
            "probability_best": self.probability_best, "seconds": round(self.seconds, 3),
            "deployment_id": None if self.deployment is None else self.deployment.deployment_id,
            "recomputed_identical": self.is_good, "differences": list(self.differences),
        }  # fmt: skip

    def facts(self) -> list[Fact]:
        """Return what is shown to people."""
        lift = "" if self.lift is None else f", lift {self.lift:+.1%}"
        tone = "good" if self.verdict == "deploy" else "bad"
        facts: list[Fact] = [
            (
                "traffic",
                f"{self.units:,} units, {self.purchases:,} purchases, {self.seconds:.1f} s",
            ),
            ("P(best) of new", f"{probability_text(self.probability_best)}{lift}"),
            ("verdict", f"{self.verdict}, at look {self.looks} of {LOOKS}", tone),
        ]
        if self.deployment is None:
            return [*facts, ("deployed", "no: the experiment did not end as it must", "bad")]
        facts.append(("deployed", f"{self.deployment.variant}, on that proof", "good"))
        facts += [("different", each, "bad") for each in self.differences]
        if not self.differences:
            facts.append(("recomputed", "identical, bit for bit", "good"))
        return facts


async def run_trial(
    client: ShadowClient,
    generator: random.Random,
    *,
    run: str,
    screen: Screen,
    clock: Clock,
) -> Trial:
    """Run an experiment until the gate says deploy or the plan is used up, and deploy.

    Raises:
        ClientError: the service does not do its part.
        TrafficRefused: it refuses a unit or an outcome.
    """
    begun_s = clock.monotonic_s()
    experiment_id = f"checkout-{run}"
    await client.create(
        experiment_id,
        {
            "variants": [{"name": name} for name in RATES],
            "metrics": [{"name": METRIC, "kind": "binary"}],
            "units": UNITS,
            "looks": LOOKS,
            "margin": MARGIN,
            "description": "made up by tollkeeper demo",
        },
        start=True,
    )
    traffic = _Traffic(client, generator, experiment_id)
    new, last = await _until_verdict(client, traffic, screen)
    deployment: Deployment | None = None
    differences: tuple[str, ...] = ()
    if last.verdict == "deploy":
        deployment = await client.deploy(experiment_id, new.variant)
        differences = tuple(differences_of(await client.deployment(deployment.deployment_id)))
    return Trial(
        experiment_id=experiment_id, units=traffic.units, purchases=traffic.purchases,
        looks=last.look, verdict=last.verdict, probability_best=new.probability_best,
        lift=new.lift, seconds=clock.monotonic_s() - begun_s, deployment=deployment,
        differences=differences,
    )  # fmt: skip


async def _until_verdict(
    client: ShadowClient, traffic: "_Traffic", screen: Screen
) -> tuple[_Arm, _Look]:
    """Let units come until the gate says deploy, or the plan is used up."""
    with screen.line() as show:
        while True:
            await traffic.send(BATCH)
            found = await _look(client, traffic.experiment_id)
            last = found.last_look or _Look(0, "none yet")
            new = next(arm for arm in found.arms if arm.variant == "new")
            show(
                f"experiment    {traffic.units:>6,} units   look {last.look:>2} of {LOOKS}   "
                f"P(best) of new {probability_text(new.probability_best):>7}   {last.verdict}"
            )
            if last.verdict == "deploy" or traffic.units >= UNITS:
                return new, last


class _Traffic:
    """Units that come, get a variant, and buy or not."""

    def __init__(self, client: ShadowClient, generator: random.Random, experiment_id: str) -> None:
        self._client = client
        self.experiment_id = experiment_id
        self._buys = {
            name: [generator.random() < rate for _ in range(UNITS + BATCH)]
            for name, rate in RATES.items()
        }
        self._seen: Counter[str] = Counter()
        self.units = 0
        self.purchases = 0

    async def send(self, count: int) -> None:
        """Let so many units come."""
        names = [f"visitor-{self.units + number:06}" for number in range(count)]
        outcomes = []
        for result in await self._client.assign_batch(self.experiment_id, names):
            if result.assignment is None:
                raise TrafficRefused(reason=result.problem.title if result.problem else "?")
            variant = result.assignment.variant
            is_sold = self._buys[variant][self._seen[variant]]
            self._seen[variant] += 1
            self.purchases += is_sold
            unit_id = result.assignment.unit_id
            outcomes.append(Outcome(self.experiment_id, unit_id, value=int(is_sold)))
        for recorded in await self._client.record_batch(outcomes):
            if recorded.outcome is None:
                raise TrafficRefused(reason=recorded.problem.title if recorded.problem else "?")
        self.units += count


async def _look(client: ShadowClient, experiment_id: str) -> _Shown:
    """Read the analysis: the service takes a look that is due first."""
    raw = await client.analysis(experiment_id)
    try:
        return msgspec.json.decode(raw, type=_Shown)
    except msgspec.DecodeError as error:
        raise AnswerMalformed(url=experiment_id, reason=str(error)) from error
