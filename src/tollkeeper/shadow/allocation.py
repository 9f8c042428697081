"""Which variant a unit gets, as a function of its id: the same everywhere, without a round trip.

Standard library only: the client library chooses with this too. The algorithm, version 1, so that
it can be written in any language (`docs/guide/allocation-vectors.json` holds what it gives):

1. The *message* is the byte 0x01, then three fields: the purpose, the salt, the unit's id. A field
   is the number of its bytes in UTF-8, as four bytes with the highest first, then these bytes.
2. The *position* is the SHA-256 of the message, its first eight bytes read as a number with the
   highest byte first, shifted right by 11 bits (53 bits are left), divided by 2**53: an IEEE 754
   double from 0 up to, but not, 1. No rounding happens.
3. The purpose `variant` with the experiment's salt gives the *variant*: weights are added as
   doubles, in the order of the variants, and the first sum that is greater than the position names
   it. If rounding leaves all sums at or below the position, it is the last variant whose weight is
   above 0. A variant of weight 0 is never chosen.
4. The purpose `holdout` with the group's name as salt: a position below the group's share means
   that the unit is *held out* of every experiment of the group.
5. The purpose `namespace` with the namespace's name as salt: a unit whose position is not in start
   <= position < end is *excluded*; the experiments of a namespace have ranges that do not overlap.

A unit is held out before it is excluded, and excluded before a variant is chosen. Positions of
different purposes or salts have nothing to do with each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from hashlib import sha256
from math import fsum
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

HASH_VERSION: Final = 1
"""First byte of every message; another algorithm gets another version."""

WEIGHT_TOLERANCE: Final = 1e-9
"""How far a sum of weights may be from 1: they are decimals that somebody wrote."""

Purpose = Literal["variant", "holdout", "namespace"]

_POSITIONS: Final = float(1 << 53)
_PREFIXES_REMEMBERED: Final = 4_096


class PlacementKind(StrEnum):
    """What becomes of a unit."""

    ASSIGNED = "assigned"
    HELD_OUT = "held_out"
    EXCLUDED = "excluded"


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldoutShare:
    """A share of all units that the experiments of a group leave alone.

    Raises:
        ValueError: The share is not 0 to 1.
    """

    group: str
    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError("a holdout's share is 0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceRange:
    """The units of a namespace that may take part, from `start` to `end`, which is not part of it.

    Raises:
        ValueError: It is empty, or leaves 0 to 1.
    """

    name: str
    start: float
    end: float

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end <= 1:
            raise ValueError("a namespace needs 0 <= start < end <= 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """How the units of one experiment are placed.

    Raises:
        ValueError: Weights are not 0 to 1, or do not sum to 1.
    """

    salt: str
    weights: tuple[float, ...]
    holdout: HoldoutShare | None = None
    namespace: NamespaceRange | None = None

    def __post_init__(self) -> None:
        if not all(0 <= weight <= 1 for weight in self.weights):
            raise ValueError("a weight is 0 to 1")
        if abs(fsum(self.weights) - 1) > WEIGHT_TOLERANCE:
            raise ValueError("weights must sum to 1")


@dataclass(frozen=True, slots=True)
class Placement:
    """What a unit gets: the number of a variant and the probability it had, or neither."""

    kind: PlacementKind
    variant: int | None = None
    probability: float | None = None


HELD_OUT: Final = Placement(PlacementKind.HELD_OUT)
EXCLUDED: Final = Placement(PlacementKind.EXCLUDED)


def position(salt: str, unit_id: str, *, purpose: Purpose) -> float:
    """Return where from 0 to 1 a unit is, for this purpose and salt.

    Raises:
        UnicodeEncodeError: A text holds half of a surrogate pair.
    """
    digest = _prefix(purpose, salt).copy()
    digest.update(_field(unit_id))
    return (int.from_bytes(digest.digest()[:8], "big") >> 11) / _POSITIONS


def choose_variant(place: float, weights: Sequence[float]) -> int:
    """Return the number of the variant at a position.

    Raises:
        ValueError: No weight is above 0.
    """
    total = 0.0
    for number, weight in enumerate(weights):
        total += weight
        if place < total:
            return number
    for number in range(len(weights) - 1, -1, -1):
        if weights[number] > 0:
            return number
    raise ValueError("no variant has a weight above 0")


def allocate(allocation: Allocation, unit_id: str) -> Placement:
    """Place a unit: held out, excluded, or assigned a variant with its probability."""
    holdout, namespace = allocation.holdout, allocation.namespace
    if holdout is not None and _is_held_out(holdout, unit_id):
        return HELD_OUT
    if namespace is not None and not _is_inside(namespace, unit_id):
        return EXCLUDED
    variant = choose_variant(
        position(allocation.salt, unit_id, purpose="variant"), allocation.weights
    )
    return Placement(PlacementKind.ASSIGNED, variant, allocation.weights[variant])


def _is_held_out(holdout: HoldoutShare, unit_id: str) -> bool:
    return position(holdout.group, unit_id, purpose="holdout") < holdout.share


def _is_inside(namespace: NamespaceRange, unit_id: str) -> bool:
    place = position(namespace.name, unit_id, purpose="namespace")
    return namespace.start <= place < namespace.end


@lru_cache(maxsize=_PREFIXES_REMEMBERED)
def _prefix(purpose: Purpose, salt: str) -> "Hash":
    """Return the digest of everything before the unit's id; copying it takes a third of 1 µs."""
    return sha256(bytes([HASH_VERSION]) + _field(purpose) + _field(salt))


def _field(text: str) -> bytes:
    field = text.encode()
    return len(field).to_bytes(4, "big") + field
