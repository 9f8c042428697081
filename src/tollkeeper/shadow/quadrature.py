"""Integrals over densities of very different widths, and their running integrals. Pure.

A line is cut into panels that no density needs finer, and each panel has Gauss-Legendre nodes.
Where the density of 10**9 units stands inside that of 100, panels are narrow there and wide around.
A density is integrated up to each node by integrating the polynomial through its nodes, which costs
a hundredth of evaluating an incomplete beta function there.

Source: Trefethen, "Approximation Theory and Approximation Practice", chapter 19.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.polynomial import legendre
from numpy.typing import NDArray

Array = NDArray[np.float64]

NODES = 20
"""Nodes of a panel: with panels of two standard deviations the error is below 1e-13."""

PANELS_LIMIT = 20_000
"""More panels than any posterior needs: reaching it is a bug of ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Panels with their nodes and weights; shapes `(panels * NODES,)`, `half` `(panels,)`."""

    nodes: Array
    weights: Array
    half: Array

    @classmethod
    def of_edges(cls, edges: Array) -> "Grid":
        """Return the grid whose panels lie between consecutive edges."""
        abscissae, weights, _, _ = _rule()
        half = np.diff(edges) / 2
        center = (edges[:-1] + edges[1:]) / 2
        nodes = center[:, None] + half[:, None] * abscissae
        return cls(nodes=nodes.ravel(), weights=(half[:, None] * weights).ravel(), half=half)

    def running(self, density: Array) -> tuple[Array, Array]:
        """Return the integrals up to each node, and from each node on; shapes `(n, nodes)`."""
        _, weights, upto, onward = _rule()
        panels = density.reshape(len(density), len(self.half), NODES)
        masses = (panels @ weights) * self.half
        before = np.cumsum(masses, axis=1) - masses
        after = np.cumsum(masses[:, ::-1], axis=1)[:, ::-1] - masses
        scale = self.half[:, None]
        below = before[:, :, None] + scale * (panels @ upto.T)
        above = after[:, :, None] + scale * (panels @ onward.T)
        shape = density.shape
        return np.clip(below.reshape(shape), 0, 1), np.clip(above.reshape(shape), 0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """Where a density is, and how wide a panel may be for it.

    It is nothing outside `low` to `high`. A panel is at most `step` wide, or `share` of its
    distance from `center`, if that is more.
    """

    low: float
    high: float
    step: float
    center: float = 0.0
    share: float = 0.0

    def panel_end(self, place: float) -> float:
        """Return where a panel that begins at `place` must end, at the latest.

        Far away that is exactly where the density begins: a sum would be rounded to the distance.
        """
        return max(place + max(self.step, self.share * abs(place - self.center)), self.low)


def edges_of(extents: Sequence[Extent], begin: float, end: float) -> Array:
    """Return the edges of panels from `begin` to `end`: none is too wide for a density in it.

    A panel may begin before a density does, if it is narrow enough for it.
    """
    place = begin
    edges = [place]
    while place < end:
        ends = [each.panel_end(place) for each in extents if each.high > place]
        last, place = place, min(end, *ends) if ends else end
        edges.append(place)
        assert last < place, "a panel without width"
        assert len(edges) < PANELS_LIMIT, "panels without end"
    return np.array(edges)


@lru_cache(maxsize=1)
def _rule() -> tuple[Array, Array, Array, Array]:
    """Return nodes and weights on -1..1, and the matrices that integrate up to and from a node."""
    nodes, weights = legendre.leggauss(NODES)
    degrees = np.arange(NODES)
    polynomials = legendre.legvander(nodes, NODES)
    coefficients = (degrees[:, None] + 0.5) * polynomials[:, :NODES].T * weights
    integrals = np.empty((NODES, NODES))
    integrals[:, 0] = nodes + 1
    integrals[:, 1:] = (polynomials[:, 2:] - polynomials[:, :-2]) / (2 * degrees[1:] + 1)
    upto = integrals @ coefficients
    return nodes, weights, upto, upto[::-1, ::-1].copy()
