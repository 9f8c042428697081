"""Inputs of decisions as the database would write them, made from counts."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from tests.experiments import definition as definition_of

from tollkeeper.shadow.evidence import Evidence, parse
from tollkeeper.shadow.model import Definition
from tollkeeper.shadow.statistics import ArmStatistics

HOUR_US = 3_600_000_000
AS_OF_US = 1_767_225_600_000_000
"""The first of January 2026."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """An arm in one epoch and metric; what is not said is as if all units had answered."""

    statistics: ArmStatistics
    variant: int
    metric: int = 0
    epoch: int = 1
    exposed: int | None = None
    mature: int | None = None
    answered: int | None = None
    last_received_at: int | None = AS_OF_US - HOUR_US


def part(variant: int, units: int, successes: int, **changes: object) -> Part:
    """Return an arm of a binary metric."""
    statistics = ArmStatistics.of_successes(units, successes)
    return Part(statistics=statistics, variant=variant, **changes)  # type: ignore[arg-type]


def inputs_of(
    parts: Sequence[Part],
    *,
    definition: Definition | None = None,
    weights: Sequence[Sequence[float]] | None = None,
    as_of: int = AS_OF_US,
) -> str:
    """Return the text of inputs; `weights` are by epoch."""
    wanted = definition or definition_of()
    arms = [
        {
            "epoch": each.epoch,
            "variant": each.variant,
            "metric": each.metric,
            "exposed": each.statistics.units if each.exposed is None else each.exposed,
            "mature": each.statistics.units if each.mature is None else each.mature,
            "answered": each.statistics.units if each.answered is None else each.answered,
            "units": each.statistics.units,
            "total": each.statistics.total,
            "squares": each.statistics.squares,
            "last_received_at": each.last_received_at,
        }
        for each in parts
    ]
    epochs = [
        {"epoch": number, "begun_at": as_of - 24 * HOUR_US, "weights": list(shares)}
        for number, shares in enumerate(weights or [wanted.weights], start=1)
    ]
    document = {
        "format": 1,
        "experiment_id": "checkout",
        "tenant_id": "acme",
        "definition": wanted,
        "started_at": as_of - 24 * HOUR_US,
        "as_of": as_of,
        "epochs": epochs,
        "arms": arms or None,
    }
    return msgspec.json.encode(document).decode()


def evidence_of(
    *counts: tuple[int, int],
    definition: Definition | None = None,
    more: Sequence[Part] = (),
    seed: int = 0,
) -> Evidence:
    """Return the evidence of variants with so many units and successes each."""
    parts = [part(no, units, successes) for no, (units, successes) in enumerate(counts)]
    return parse(inputs_of([*parts, *more], definition=definition), seed=seed)
