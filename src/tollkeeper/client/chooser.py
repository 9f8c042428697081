"""Variants chosen in one's own process: no call, no wait, and nothing that can fail.

A task keeps a snapshot of the experiments fresh, another reports what was chosen; `choose` looks
into memory only. It allocates with the service's own function: service and process agree.

Invariants: `choose` never raises and never waits; a unit keeps its variant while this process
remembers it, whatever the weights do; memory is bounded, and what is dropped is counted. A unit
that somebody else assigned by other weights has the variant of then: the answer to its report says
so, and from then on `choose` does.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from types import TracebackType
from typing import NamedTuple, Self

from tollkeeper.client.errors import AnswerMalformed, CallFailed, CallMalformed, ClientError
from tollkeeper.client.shadow import ShadowClient
from tollkeeper.client.shadow_messages import (
    Assignment,
    AssignmentResult,
    Snapshot,
    SnapshotExperiment,
    Unit,
)
from tollkeeper.kernel.clock import Clock, SystemClock
from tollkeeper.shadow.allocation import (
    Allocation,
    HoldoutShare,
    NamespaceRange,
    PlacementKind,
    allocate,
)

Attributes = Mapping[str, str | int | float | bool | None]

ID_LIMIT_BYTES = 128
"""Longest id of a unit."""

LEAST_PATIENCE_S = 10.0
"""Longest wait for a snapshot, unless they are further apart."""

EPOCH_PATIENCE = timedelta(seconds=10)
"""How long the processes of a service may take to tell each other of new weights."""

_RUNNING = "running"
_ASSIGNED = "assigned"
_RETRIED_STATUSES = frozenset({429, 502, 503, 504})
_FAULTY_BODY = frozenset({400, 413})


class Choice(NamedTuple):
    """The variant a unit gets here.

    `status` is assigned, held_out, excluded, paused, ended or deployed, as the service says it.
    unknown: there is no such experiment, or it has not started; unavailable: nobody knows, the
    service was not there to be asked; invalid: this cannot be the id of a unit.

    Only `assigned` counts; all others but deployed are the control.
    """

    variant: str
    probability: float | None
    epoch: int | None
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChooserLimits:
    """How much is remembered, how often is asked, and how long is trusted.

    `units` are remembered with their choice (about 300 bytes each); `waiting` choices are kept
    until they are reported, in batches of up to `batch` and at least every `flush_s`. The snapshot
    is asked for every `poll_s`; one that is older than `stale_after_s` assigns nobody new, since
    the experiment may long have been paused. At the start the first snapshot is waited for, at the
    end the last report.
    """

    units: int = 100_000
    waiting: int = 50_000
    batch: int = 1_000
    flush_s: float = 0.2
    poll_s: float = 2.0
    stale_after_s: float = 300.0
    starting_s: float = 2.0
    closing_s: float = 5.0

    def __post_init__(self) -> None:
        if min(self.units, self.waiting, self.batch) < 1:
            raise ValueError("a chooser needs room for a unit")
        times_s = (self.flush_s, self.poll_s, self.stale_after_s, self.starting_s, self.closing_s)
        if min(times_s) <= 0:
            raise ValueError("a chooser needs times above 0")


class Chooser:
    """Chooses from a snapshot that it keeps fresh. Use it as an async context manager.

    It starts when the service is down, too: then everybody gets the `fallback` of the call, and
    later what the service says. Not for several event loops.
    """

    def __init__(
        self,
        client: ShadowClient,
        *,
        limits: ChooserLimits | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._client = client
        self._limits = limits or ChooserLimits()
        self._clock = clock or SystemClock()
        self._experiments: dict[str, _Experiment] = {}
        self._version: str | None = None
        self._seen_s = 0.0
        self._is_stale = True
        self._chosen: OrderedDict[tuple[str, str], Choice] = OrderedDict()
        self._waiting: deque[_Exposure] = deque()
        self._is_full = asyncio.Event()
        self._fresh = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.reported = 0
        """Choices that the service has."""
        self.corrected = 0
        """... of which it had assigned another variant before."""
        self.dropped = 0
        """Choices that were never reported: no room, or no service until the end."""
        self.refused = 0
        """Choices that the service would not have."""

    async def __aenter__(self) -> Self:
        """Ask for the first snapshot once, and begin; without an answer it begins all the same."""
        self._tasks = [
            asyncio.create_task(self._keep_fresh(), name="keep the snapshot fresh"),
            asyncio.create_task(self._keep_reporting(), name="report choices"),
        ]
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.starting_s):
                await self._fresh.wait()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Report what waits, as far as that can be done in time, and stop."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.closing_s):
                while self._waiting:
                    if not await self._report():
                        await self._clock.sleep(self._limits.flush_s)
        self.dropped += len(self._waiting)
        self._waiting.clear()

    @property
    def waiting(self) -> int:
        """Return how many choices are not reported yet."""
        return len(self._waiting)

    @property
    def version(self) -> str | None:
        """Return the version of the snapshot; None: there was none yet."""
        return self._version

    @property
    def is_stale(self) -> bool:
        """Tell whether the snapshot is too old to assign anybody new."""
        return self._is_stale

    def choose(
        self,
        experiment_id: str,
        unit_id: str,
        attributes: Attributes | None = None,
        *,
        fallback: str = "control",
    ) -> Choice:
        """Return the variant that a unit gets; `fallback` while nobody knows the experiment.

        Attributes are kept beside the exposure. In memory only: some microseconds.
        """
        experiment = self._experiments.get(experiment_id)
        if experiment is None:
            status = "unavailable" if self._is_stale else "unknown"
            return Choice(fallback, None, None, status)
        if experiment.is_over:
            return experiment.otherwise
        key = (experiment_id, unit_id)
        chosen = self._chosen.get(key)
        if chosen is not None:
            self._chosen.move_to_end(key)
            return chosen
        if experiment.is_closed or self._is_stale:
            return experiment.otherwise if experiment.is_closed else experiment.unavailable
        choice = experiment.allocate(unit_id)
        if choice.status == _ASSIGNED:
            self._keep(key, choice, attributes)
        return choice

    async def refresh(self) -> None:
        """Ask for the snapshot now.

        Raises:
            ClientError: there is no answer; what is known stays.
        """
        snapshot = await self._client.snapshot(self._version)
        self._seen_s = self._clock.monotonic_s()
        if snapshot is not None:
            try:
                self._take(snapshot)
            except ValueError as error:  # shares that do not sum to 1, a control that is no variant
                raise AnswerMalformed(url="the snapshot", reason=str(error)) from error
        self._is_stale = False

    def _keep(self, key: tuple[str, str], choice: Choice, attributes: Attributes | None) -> None:
        """Remember a choice and have it reported; without room it is made anew next time."""
        if len(self._waiting) >= self._limits.waiting:
            self.dropped += 1
            return
        kept = None if attributes is None else dict(attributes)
        self._waiting.append(_Exposure(*key, choice.variant, choice.epoch, kept, self._clock.now()))
        if len(self._waiting) >= self._limits.batch:
            self._is_full.set()
        self._remember(key, choice)

    def _remember(self, key: tuple[str, str], choice: Choice) -> None:
        self._chosen[key] = choice
        if len(self._chosen) > self._limits.units:
            self._chosen.popitem(last=False)

    def _take(self, snapshot: Snapshot) -> None:
        """Choose by a snapshot from now on; an experiment that is not in it any more has ended."""
        now = {each.experiment_id: _Experiment.of(each) for each in snapshot.experiments}
        for experiment_id, before in self._experiments.items():
            if experiment_id not in now:
                now[experiment_id] = before.ended()
        self._experiments = now
        self._version = snapshot.version

    async def _keep_fresh(self) -> None:
        while True:
            try:
                async with asyncio.timeout(max(self._limits.poll_s, LEAST_PATIENCE_S)):
                    await self.refresh()
            except (ClientError, TimeoutError):
                age_s = self._clock.monotonic_s() - self._seen_s
                self._is_stale = self._version is None or age_s > self._limits.stale_after_s
            self._fresh.set()
            await self._clock.sleep(self._limits.poll_s)

    async def _keep_reporting(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._limits.flush_s):
                    await self._is_full.wait()
            self._is_full.clear()
            is_taken = True
            while is_taken and self._waiting:
                is_taken = await self._report()
            if not is_taken:
                await self._clock.sleep(self._limits.flush_s)

    async def _report(self) -> bool:
        """Report the oldest choices; tell whether the service took them, and so takes more now."""
        batch = list(islice(self._waiting, self._limits.batch))
        later: list[_Exposure] = []
        of_experiment: dict[str, list[_Exposure]] = {}
        for exposure in batch:
            of_experiment.setdefault(exposure.experiment_id, []).append(exposure)
        for experiment_id, exposures in of_experiment.items():
            try:
                results = await self._deliver(experiment_id, exposures)
            except ClientError:
                later += exposures
                continue
            for exposure, result in zip(exposures, results, strict=True):
                if result is not None and self._may_pass(exposure, result):
                    later.append(exposure)
                else:
                    self._learn(exposure, result)
        for _ in batch:  # meanwhile `choose` only appended: the oldest are still these
            self._waiting.popleft()
        self._waiting.extendleft(reversed(later))
        return not later

    async def _deliver(
        self, experiment_id: str, exposures: Sequence["_Exposure"], *, are_timed: bool = True
    ) -> list[AssignmentResult | None]:
        """Return what the service says of each; None: it would not have it.

        A body is refused whole for one fault in it: then each half is sent by itself. Where this
        clock is ahead of the service's, all are exposed when they arrive there.

        Raises:
            ClientError: there is no answer now.
        """
        units = [
            Unit(each.unit_id, each.attributes, each.epoch, each.exposed_at if are_timed else None)
            for each in exposures
        ]
        try:
            return list(await self._client.assign_batch(experiment_id, units))
        except CallMalformed:
            pass
        except CallFailed as error:
            if error.status in _RETRIED_STATUSES or error.status >= 500:
                raise
            if error.status not in _FAULTY_BODY:
                return [None] * len(exposures)
            if are_timed and _is_ahead(error):
                return await self._deliver(experiment_id, exposures, are_timed=False)
        if len(exposures) == 1:
            return [None]
        half = len(exposures) // 2
        first = await self._deliver(experiment_id, exposures[:half], are_timed=are_timed)
        rest = await self._deliver(experiment_id, exposures[half:], are_timed=are_timed)
        return first + rest

    def _may_pass(self, exposure: "_Exposure", result: AssignmentResult) -> bool:
        """Whether the service may take a choice later that it does not take now."""
        if result.status in _RETRIED_STATUSES:
            return True
        # The snapshot may have come from another process, which knew the new weights before.
        is_new = result.problem is not None and result.problem.name == "epoch-unknown"
        return is_new and self._clock.now() - exposure.exposed_at < EPOCH_PATIENCE

    def _learn(self, exposure: "_Exposure", result: AssignmentResult | None) -> None:
        assignment = None if result is None else result.assignment
        if assignment is None:
            self.refused += 1
            return
        self.reported += 1
        if assignment.status != _ASSIGNED or assignment.variant == exposure.variant:
            return
        self.corrected += 1
        key = (exposure.experiment_id, exposure.unit_id)
        if key in self._chosen:
            self._chosen[key] = _choice_of(assignment)


class _Exposure(NamedTuple):
    """A choice that is to be reported."""

    experiment_id: str
    unit_id: str
    variant: str
    epoch: int | None
    attributes: dict[str, str | int | float | bool | None] | None
    exposed_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class _Experiment:
    """An experiment as a snapshot has it, with the choices that are the same for all.

    `is_over` means that everybody gets `otherwise`; `is_closed` that nobody new is assigned.
    """

    allocation: Allocation
    choices: tuple[Choice, ...]
    held_out: Choice
    excluded: Choice
    otherwise: Choice
    unavailable: Choice
    invalid: Choice
    is_closed: bool
    is_over: bool

    @classmethod
    def of(cls, seen: SnapshotExperiment) -> "_Experiment":
        """Make ready to choose."""
        names = tuple(share.name for share in seen.variants)
        weights = tuple(share.weight for share in seen.variants)
        state = "deployed" if seen.deployed is not None else seen.state
        return cls(
            allocation=Allocation(
                salt=seen.experiment_id,
                weights=weights,
                holdout=_holdout_of(seen),
                namespace=_namespace_of(seen),
            ),
            choices=tuple(
                Choice(name, weight, seen.epoch, _ASSIGNED)
                for name, weight in zip(names, weights, strict=True)
            ),
            held_out=Choice(seen.control, None, None, "held_out"),
            excluded=Choice(seen.control, None, None, "excluded"),
            otherwise=Choice(seen.deployed or seen.control, None, None, state),
            unavailable=Choice(seen.control, None, None, "unavailable"),
            invalid=Choice(seen.control, None, None, "invalid"),
            is_closed=state != _RUNNING,
            is_over=state not in {_RUNNING, "paused"},
        )

    def ended(self) -> "_Experiment":
        """Return it as it is when the snapshot does not have it any more."""
        control = self.unavailable.variant
        return _Experiment(
            allocation=self.allocation, choices=(), held_out=self.held_out,
            excluded=self.excluded, otherwise=Choice(control, None, None, "ended"),
            unavailable=self.unavailable, invalid=self.invalid, is_closed=True, is_over=True,
        )  # fmt: skip

    def allocate(self, unit_id: str) -> Choice:
        """Return the choice of a unit that has none."""
        if not _is_unit_id(unit_id):
            return self.invalid
        placement = allocate(self.allocation, unit_id)
        if placement.variant is not None:
            return self.choices[placement.variant]
        return self.held_out if placement.kind is PlacementKind.HELD_OUT else self.excluded


def _holdout_of(seen: SnapshotExperiment) -> HoldoutShare | None:
    holdout = seen.holdout
    return None if holdout is None else HoldoutShare(group=holdout.group, share=holdout.share)


def _namespace_of(seen: SnapshotExperiment) -> NamespaceRange | None:
    space = seen.namespace
    if space is None:
        return None
    return NamespaceRange(name=space.name, start=space.start, end=space.end)


def _is_unit_id(text: object) -> bool:
    """Whether the service would take a unit of this id; most are short and ASCII."""
    if not isinstance(text, str):  # a number, of somebody who does not check types
        return False
    if text.isascii() and text.isprintable():
        return 1 <= len(text) <= ID_LIMIT_BYTES
    try:
        return 1 <= len(text.encode()) <= ID_LIMIT_BYTES and "\0" not in text
    except UnicodeEncodeError:
        return False


def _is_ahead(refusal: CallFailed) -> bool:
    """Whether a body was refused for the moment of an exposure: nothing else is wrong with one."""
    faults = refusal.facts.get("errors")
    if not isinstance(faults, list) or not faults or not isinstance(faults[0], dict):
        return False
    return str(faults[0].get("field")).endswith("exposed_at")


def _choice_of(assignment: Assignment) -> Choice:
    return Choice(assignment.variant, assignment.probability, assignment.epoch, _ASSIGNED)
