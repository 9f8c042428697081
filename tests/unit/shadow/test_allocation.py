"""Which variant a unit gets: published vectors, written anew from the words; and no pattern."""

import hashlib
import json
import struct
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tollkeeper.shadow.allocation import (
    EXCLUDED,
    HASH_VERSION,
    HELD_OUT,
    Allocation,
    HoldoutShare,
    NamespaceRange,
    PlacementKind,
    Purpose,
    allocate,
    choose_variant,
    position,
)

VECTORS = json.loads(
    (Path(__file__).parents[3] / "docs" / "guide" / "allocation-vectors.json").read_text("utf-8")
)
UNITS = [f"user-{number}" for number in range(20_000)]
HALVES = Allocation(salt="checkout", weights=(0.5, 0.5))


def position_in_words(purpose: str, salt: str, unit_id: str) -> Fraction:
    """Write steps 1 and 2 of the module's docstring anew."""
    message = b"\x01"
    for text in (purpose, salt, unit_id):
        message += struct.pack(">I", len(text.encode("utf-8"))) + text.encode("utf-8")
    bits = f"{int(hashlib.sha256(message).hexdigest(), 16):0256b}"[:53]
    return Fraction(int(bits, 2), 2**53)


def placement_in_words(allocation: dict[str, Any], unit_id: str) -> tuple[str, int | None]:
    """Write steps 3 to 5 anew; none of the vectors is within rounding of a bound."""
    holdout, namespace = allocation.get("holdout"), allocation.get("namespace")
    if holdout and position_in_words("holdout", holdout["group"], unit_id) < holdout["share"]:
        return "held_out", None
    if namespace:
        place = position_in_words("namespace", namespace["name"], unit_id)
        if place < namespace["start"] or place >= namespace["end"]:
            return "excluded", None
    place = position_in_words("variant", allocation["salt"], unit_id)
    bounds = np.cumsum(allocation["weights"])
    return "assigned", int(np.searchsorted(bounds, float(place), side="right"))


@pytest.mark.parametrize("vector", VECTORS["positions"])
def test_a_published_position_is_kept(vector: dict[str, Any]) -> None:
    purpose, salt, unit_id = vector["purpose"], vector["salt"], vector["unit_id"]

    assert vector["position"] == position(salt, unit_id, purpose=purpose)
    assert Fraction(vector["position"]) == position_in_words(purpose, salt, unit_id)


@pytest.mark.parametrize("vector", VECTORS["placements"])
def test_a_published_placement_is_kept(vector: dict[str, Any]) -> None:
    written = vector["allocation"]
    allocation = Allocation(
        salt=written["salt"],
        weights=tuple(written["weights"]),
        holdout=HoldoutShare(**written["holdout"]) if "holdout" in written else None,
        namespace=NamespaceRange(**written["namespace"]) if "namespace" in written else None,
    )
    placed = allocate(allocation, vector["unit_id"])

    assert (vector["kind"], vector["variant"]) == (placed.kind, placed.variant)
    assert vector["probability"] == placed.probability
    assert (placed.kind, placed.variant) == placement_in_words(written, vector["unit_id"])


def test_the_vectors_are_of_this_version_and_show_every_kind() -> None:
    assert VECTORS["hash_version"] == HASH_VERSION
    assert set(PlacementKind) == {each["kind"] for each in VECTORS["placements"]}


@pytest.mark.parametrize("purpose", ["variant", "holdout", "namespace"])
def test_positions_are_uniform(purpose: Purpose) -> None:
    places = [position("checkout", unit, purpose=purpose) for unit in UNITS]
    counts, _ = np.histogram(places, bins=100, range=(0, 1))

    assert 0 <= min(places)
    assert max(places) < 1
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("checkout", "variant"), ("prices", "variant")),
        (("checkout", "variant"), ("checkout-", "variant")),
        (("checkout", "variant"), ("checkout", "holdout")),
        (("checkout", "holdout"), ("checkout", "namespace")),
    ],
)
def test_experiments_and_purposes_know_nothing_of_each_other(
    first: tuple[str, Purpose], second: tuple[str, Purpose]
) -> None:
    table = np.zeros((4, 4))
    for unit in UNITS:
        row, column = (int(4 * position(s, unit, purpose=p)) for s, p in (first, second))
        table[row, column] += 1

    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_a_field_ends_where_its_length_says() -> None:
    assert position("a", "bc", purpose="variant") != position("ab", "c", purpose="variant")


def test_shares_are_the_weights() -> None:
    allocation = Allocation(salt="s", weights=(0.1, 0.2, 0.0, 0.7))
    chosen = [allocate(allocation, unit).variant or 0 for unit in UNITS]
    counts = np.bincount(chosen, minlength=4)

    assert 0 == counts[2]
    expected = len(UNITS) * np.array([0.1, 0.2, 0.7])
    assert stats.chisquare(counts[[0, 1, 3]], expected).pvalue > 1e-3


def test_an_assignment_has_the_probability_of_its_variant() -> None:
    allocation = Allocation(salt="s", weights=(0.25, 0.75))
    placed = {allocate(allocation, unit) for unit in UNITS[:100]}

    assert {(0, 0.25), (1, 0.75)} == {(each.variant, each.probability) for each in placed}


def test_a_unit_keeps_its_variant_when_another_one_grows() -> None:
    """Weights move the bounds: only units between an old and a new bound change."""
    wider = Allocation(salt="checkout", weights=(0.6, 0.4))
    moved = sum(allocate(HALVES, unit).variant != allocate(wider, unit).variant for unit in UNITS)

    assert pytest.approx(0.1, abs=0.01) == moved / len(UNITS)


def test_the_same_units_are_held_out_of_every_experiment_of_a_group() -> None:
    group = HoldoutShare(group="2026", share=0.1)
    held = [
        {
            unit
            for unit in UNITS
            if allocate(Allocation(salt=salt, weights=(1.0,), holdout=group), unit) is HELD_OUT
        }
        for salt in ("checkout", "prices")
    ]

    assert held[0] == held[1]
    assert pytest.approx(0.1, abs=0.01) == len(held[0]) / len(UNITS)


def test_experiments_of_a_namespace_share_no_unit_and_leave_none_out() -> None:
    bounds = (0.0, 0.3, 0.35, 1.0)
    allocations = [
        Allocation(
            salt=f"experiment-{start}",
            weights=(0.5, 0.5),
            namespace=NamespaceRange(name="cart", start=start, end=end),
        )
        for start, end in pairwise(bounds)
    ]
    for unit in UNITS[:2_000]:
        placed = [allocate(allocation, unit) for allocation in allocations]

        assert [EXCLUDED, EXCLUDED] == [each for each in placed if each.variant is None]


def test_held_out_comes_before_excluded() -> None:
    allocation = Allocation(
        salt="s",
        weights=(1.0,),
        holdout=HoldoutShare(group="g", share=1.0),
        namespace=NamespaceRange(name="n", start=0.0, end=1e-9),
    )

    assert HELD_OUT is allocate(allocation, "user-1")


@pytest.mark.parametrize(
    ("place", "weights", "expected"),
    [
        (0.0, (0.5, 0.5), 0),
        (0.5, (0.5, 0.5), 1),
        (0.0, (0.0, 1.0), 1),
        (1 - 2**-53, (0.1,) * 10, 9),
        (1 - 2**-53, (1 / 3, 1 / 3, 1 / 3 - 1e-10, 0.0), 2),
        (0.3, (0.3, 0.0, 0.7), 2),
    ],
)
def test_a_bound_belongs_to_the_next_variant_that_has_a_weight(
    place: float, weights: tuple[float, ...], expected: int
) -> None:
    assert expected == choose_variant(place, weights)


@pytest.mark.parametrize("weights", [(0.5, 0.4), (1.5, -0.5), (), (0.5, float("nan"))])
def test_weights_that_do_not_sum_to_one_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="weight"):
        Allocation(salt="s", weights=weights)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="share"):
        HoldoutShare(group="g", share=1.5)
    with pytest.raises(ValueError, match="namespace"):
        NamespaceRange(name="n", start=0.5, end=0.5)
    with pytest.raises(ValueError, match="weight"):
        choose_variant(0.5, (0.0, 0.0))
    with pytest.raises(UnicodeEncodeError):
        position("s", "\ud800", purpose="variant")
