"""What is asked of the shadow service and what it says: values between routes and rules. Pure.

Ids and numbers come from outside and are judged here, before anything is done. What depends on an
experiment (is it there, does it have the metric, can the metric have the value) is judged later.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from fractions import Fraction
from typing import Final

import msgspec

from tollkeeper.shadow.model import (
    ID_LIMIT,
    MICRO,
    VALUE_LIMIT,
    Definition,
    Experiment,
    ExperimentState,
    is_id,
    is_storable,
)

ID_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._~:@!$&'()*+,;=|-]{0,127}(?![\s\S])"
"""Ids of experiments and tenants: they stand in a URL's path as they are. The end is written as a
lookahead because `$` would let a final newline pass."""

ID_RULE: Final = "1 to 128 letters, digits or `._~:@!$&'()*+,;=|-`; a letter or digit first"

UNIT_RULE: Final = f"1 to {ID_LIMIT} bytes of any text"

BATCH_LIMIT: Final = 10_000
"""Most assignments or outcomes in one request."""

ATTRIBUTES_LIMIT: Final = 50
"""Most attributes of a unit."""

ATTRIBUTES_LIMIT_BYTES: Final = 4_096
"""Bytes of a unit's attributes, as JSON."""

AHEAD: Final = timedelta(seconds=5)
"""How far a caller's clock may be ahead of ours."""

EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""Nothing was exposed, and nothing happened, before."""

DEFAULT_TENANT: Final = "default"
"""Whose an experiment is that nobody in particular creates."""

DECIMALS: Final = 6
"""Decimals of a value at most: values are kept in millionths."""

_VALUE_LENGTH = 64
_ID = re.compile(ID_PATTERN)
_NUMBER = re.compile(rb"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,2})?")


class AssignmentStatus(StrEnum):
    """What became of a unit; all but the first get the control, and nothing is kept of them."""

    ASSIGNED = "assigned"
    HELD_OUT = "held_out"
    """It is among those that experiments of the group leave alone."""
    EXCLUDED = "excluded"
    """It is outside the experiment's part of its namespace."""
    PAUSED = "paused"
    ENDED = "ended"
    DEPLOYED = "deployed"
    """A variant is deployed: everybody gets that one."""


class AssignUnit(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A unit to assign; `epoch` and `exposed_at` are of a choice that was made elsewhere."""

    unit_id: str
    attributes: bytes | None = None
    """JSON."""
    epoch: int | None = None
    exposed_at: datetime | None = None


class Assigned(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The variant that a unit gets; `is_new` when it was assigned now."""

    unit_id: str
    status: AssignmentStatus
    variant: str
    probability: float | None = None
    epoch: int | None = None
    exposed_at: datetime | None = None
    is_new: bool = False


class ReportedOutcome(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An outcome as it was reported; without a `metric` it is of the first one."""

    experiment_id: str
    unit_id: str
    outcome_id: str
    value_micro: int
    metric: str | None = None
    occurred_at: datetime | None = None


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What shall be different in an experiment; None: it stays.

    `weights` begin a new epoch. `version` is of the experiment that `definition` was made from.
    """

    state: ExperimentState | None = None
    definition: Definition | None = None
    weights: Mapping[str, float] | None = None
    version: int | None = None


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What a client needs to choose variants itself; `version` moves with any change of it."""

    version: str
    experiments: tuple[Experiment, ...]


def is_path_id(text: str) -> bool:
    """Whether a text can be the id of an experiment or a tenant."""
    return _ID.match(text) is not None


def is_unit_id(text: str) -> bool:
    """Whether a text can be the id of a unit or an outcome; most are short and ASCII."""
    if text.isascii() and text.isprintable():
        return 1 <= len(text) <= ID_LIMIT
    return is_id(text)


def micro_of(text: bytes) -> int | None:
    """Return the millionths of a JSON number; None: not a number, not exact, or too large."""
    whole, _, decimals = text.partition(b".")
    digits = whole.removeprefix(b"-")
    if digits.isdigit() and len(digits) <= len(str(VALUE_LIMIT)) and len(decimals) <= DECIMALS:
        if not decimals:
            micro = int(whole) * MICRO
        elif decimals.isdigit():
            micro = int(whole + decimals.ljust(DECIMALS, b"0"))
        else:
            return _exact_micro(text)
    else:
        return _exact_micro(text)
    return micro if abs(micro) <= VALUE_LIMIT * MICRO else None


def _exact_micro(text: bytes) -> int | None:
    if len(text) > _VALUE_LENGTH or _NUMBER.fullmatch(text) is None:
        return None
    micro = Fraction(text.decode()) * MICRO
    if micro.denominator != 1 or abs(micro.numerator) > VALUE_LIMIT * MICRO:
        return None
    return micro.numerator


def moment_fault(moment: datetime, now: datetime) -> str | None:
    """Say why something cannot have been at a moment; None: it can."""
    if moment > now + AHEAD:
        return f"must not be in the future: the service's clock says {now.isoformat()}"
    if moment < EARLIEST:
        return f"must not be before {EARLIEST.isoformat()}"
    return None


def attributes_fault(attributes: Mapping[str, object]) -> str | None:
    """Say why these cannot be a unit's attributes; None: they can."""
    if len(attributes) > ATTRIBUTES_LIMIT:
        return f"must be {ATTRIBUTES_LIMIT} at most"
    texts = [*attributes, *(value for value in attributes.values() if isinstance(value, str))]
    if not all(is_storable(text) for text in texts):
        return "must be texts without NUL"
    if len(msgspec.json.encode(attributes)) > ATTRIBUTES_LIMIT_BYTES:
        return f"must have at most {ATTRIBUTES_LIMIT_BYTES:,} bytes as JSON"
    return None
