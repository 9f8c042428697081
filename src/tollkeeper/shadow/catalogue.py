"""Experiments as this process knows them: definitions and weights, a second old at most.

A cache of what never changes within a version. Who counts does not trust its age: a batch reads the
versions under its locks and gets the rules of just these. Everybody else takes what was true within
the last `FRESH_FOR_S`.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from tollkeeper.database.driver import Connection
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.clock import Clock
from tollkeeper.shadow.counting import Rules
from tollkeeper.shadow.errors import ExperimentNotFound
from tollkeeper.shadow.experiment_store import ExperimentStore
from tollkeeper.shadow.model import Experiment

FRESH_FOR_S: Final = 1.0
"""An experiment that was looked at within this time is not asked for again."""

HELD_LIMIT: Final = 10_000
"""Experiments kept in memory; the one loaded longest ago makes room."""


@dataclass(slots=True)
class _Held:
    experiment: Experiment
    rules: Rules
    seen_at_s: float


class Catalogue:
    """Holds experiments; reads them on `pool` when the caller has no connection."""

    def __init__(self, pool: Pool, store: ExperimentStore, *, clock: Clock) -> None:
        self._pool = pool
        self._store = store
        self._clock = clock
        self._held: dict[int, _Held] = {}
        self._numbers: dict[str, int] = {}
        self._reading: dict[str, asyncio.Task[Experiment]] = {}

    async def find(self, experiment_id: str) -> Experiment:
        """Return an experiment as it was a second ago at most.

        Raises:
            ExperimentNotFound: there is none of this id, of whatever tenant.
        """
        held = self._held.get(self._numbers.get(experiment_id, -1))
        if held is not None and self._clock.monotonic_s() - held.seen_at_s < FRESH_FOR_S:
            return held.experiment
        return await self.refreshed(experiment_id)

    async def refreshed(self, experiment_id: str) -> Experiment:
        """Return an experiment as it is now; who asks while another does gets the same answer.

        Raises:
            ExperimentNotFound: there is none of this id, of whatever tenant.
        """
        reading = self._reading.get(experiment_id)
        if reading is None:
            reading = asyncio.create_task(self._read(experiment_id))
            self._reading[experiment_id] = reading
            reading.add_done_callback(partial(self._read_it, experiment_id))
        return await asyncio.shield(reading)

    def learn(self, experiment: Experiment) -> None:
        """Take in an experiment that the caller has just read or changed."""
        self._hold(experiment, self._clock.monotonic_s())

    async def rules(self, connection: Connection, versions: Mapping[int, int]) -> dict[int, Rules]:
        """Return the rules of experiments in just these versions, which their locks keep."""
        now_s = self._clock.monotonic_s()
        found: dict[int, Rules] = {}
        missing: list[int] = []
        for number, version in versions.items():
            held = self._held.get(number)
            if held is None or held.rules.version != version:
                missing.append(number)
            else:
                held.seen_at_s = now_s
                found[number] = held.rules
        if missing:
            for experiment in await self._store.by_numbers(connection, missing):
                self._hold(experiment, now_s)
                found[experiment.experiment_no] = Rules.of(experiment)
        return found

    def _read_it(self, experiment_id: str, reading: asyncio.Task[Experiment]) -> None:
        del self._reading[experiment_id]
        if not reading.cancelled():
            reading.exception()  # who asked may have left: nobody else takes note of it

    async def _read(self, experiment_id: str) -> Experiment:
        began_s = self._clock.monotonic_s()
        async with self._pool.connection() as connection:
            experiment = await self._store.read(connection, experiment_id)
        if experiment is None:
            raise ExperimentNotFound(experiment_id=experiment_id)
        return self._hold(experiment, began_s).experiment

    def _hold(self, experiment: Experiment, seen_at_s: float) -> _Held:
        number = experiment.experiment_no
        known = self._held.pop(number, None)
        if known is None or (
            known.experiment.version != experiment.version and known.seen_at_s <= seen_at_s
        ):
            held = _Held(experiment, Rules.of(experiment), seen_at_s)
        else:
            held = known  # as it was, or somebody read it later and was faster
            held.seen_at_s = max(held.seen_at_s, seen_at_s)
        self._held[number] = held
        self._numbers[experiment.experiment_id] = number
        if len(self._held) > HELD_LIMIT:
            oldest = self._held.pop(next(iter(self._held)))
            del self._numbers[oldest.experiment.experiment_id]
        return held
