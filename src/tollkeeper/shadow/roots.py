"""Where an increasing function crosses zero. Pure."""

from collections.abc import Callable
from math import copysign
from typing import NamedTuple

ROUNDS_LIMIT = 200
"""More rounds than are ever needed: every fourth one halves the bracket."""

OVERSHOOT = 1.05
"""Of a step towards the root, so that it lies between the last two places."""

RESOLUTION = 4e-16
"""Share of a place that a double cannot tell apart."""


class Point(NamedTuple):
    """A place, and the function's value there."""

    place: float
    value: float


def root_between(
    function: Callable[[float], float], low: float, high: float, *, tolerance: float
) -> float:
    """Return where an increasing function crosses zero; if it does not, the end nearest to zero."""
    below, above = Point(low, function(low)), Point(high, function(high))
    if below.value >= 0 or above.value <= 0:
        return low if below.value >= 0 else high
    return _closed_in(function, below, above, tolerance)


def root_near(
    function: Callable[[float], float], center: float, spread: float, *, tolerance: float
) -> float:
    """Return where an increasing function crosses zero, whose slope is about 1 / `spread`.

    It looks further and further away from `center` until the function has changed its sign.
    """
    last = Point(center, function(center))
    width = OVERSHOOT * max(abs(last.value) * spread, 16 * tolerance)
    for _ in range(ROUNDS_LIMIT):
        place = last.place - copysign(width, last.value)
        here = Point(place, function(place))
        if (here.value < 0) != (last.value < 0):
            return _closed_in(function, min(last, here), max(last, here), tolerance)
        last, width = here, 2 * width
    return last.place


def _closed_in(
    function: Callable[[float], float], below: Point, above: Point, tolerance: float
) -> float:
    """Return the root in a bracket, by regula falsi that never stays at one end.

    Source: the Illinois rule (Dowell and Jarratt, 1971).
    """
    side, place = 0.0, below.place
    least = max(tolerance, RESOLUTION * max(abs(below.place), abs(above.place)))
    for number in range(ROUNDS_LIMIT):
        width = above.place - below.place
        last, place = place, below.place - below.value * width / (above.value - below.value)
        if number % 4 == 3 or not below.place < place < above.place:
            place = below.place + width / 2
        if abs(place - last) <= least or width <= least:
            break
        value = function(place)
        if value < 0:
            below = Point(place, value)
            above = Point(above.place, above.value / 2) if side < 0 else above
        elif value > 0:
            above = Point(place, value)
            below = Point(below.place, below.value / 2) if side > 0 else below
        else:
            break
        side = copysign(1.0, value)
    return place
