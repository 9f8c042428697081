"""Looks at experiments by itself: takes the looks that are due, and keeps the metrics true.

Any number of processes may: a look is taken once. What fails, a round or the look of an experiment,
is logged when it begins to, and tried again; nothing waits for it, no other experiment either.
"""

import asyncio
import contextlib

import structlog

from tollkeeper.kernel.clock import Clock
from tollkeeper.shadow.decider import Decider
from tollkeeper.shadow.looks import Standing, due_look
from tollkeeper.shadow.metrics import DecisionMetrics

PERIOD_S = 1.0
"""Between two rounds: a look is taken so long after it is due."""

CENSUS_ROUNDS = 15
"""Every so many rounds deployments without testing are looked for."""

_log = structlog.get_logger(__name__)


class Evaluator:
    """A task that goes through the experiments until it is closed."""

    def __init__(self, decider: Decider, *, clock: Clock, metrics: DecisionMetrics) -> None:
        self._decider = decider
        self._clock = clock
        self._metrics = metrics
        self._task: asyncio.Task[None] | None = None
        self._said = ""
        self._said_of: dict[int, str] = {}

    def start(self) -> None:
        """Go through the experiments from now on."""
        self._task = asyncio.create_task(self._run(), name="shadow-evaluator")

    async def close(self) -> None:
        """Stop; a look under way is not taken."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def round(self, *, is_census: bool) -> None:
        """Take what is due; in a census, look for what should not be, too."""
        standings = await self._decider.standings()
        due = [each for each in standings if due_look(each) is not None]
        self._metrics.show_overdue(len(due))
        known = {each.experiment_no for each in due}
        self._said_of = {no: said for no, said in self._said_of.items() if no in known}
        for standing in due:
            await self._look(standing)
        self._metrics.keep({each.experiment_id for each in standings})
        if is_census:
            self._metrics.show_experiments(await self._decider.counts())
            self._metrics.show_untested(await self._decider.without_testing())

    async def _look(self, standing: Standing) -> None:
        try:
            await self._decider.take_look(standing)
        except Exception as error:  # noqa: BLE001  # the job's edge: others are looked at all the same
            said, number = repr(error), standing.experiment_no
            if self._said_of.get(number) != said:
                self._said_of[number] = said
                _log.warning("shadow.look_failed", experiment=standing.experiment_id, error=said)

    async def _run(self) -> None:
        rounds = 0
        while True:
            try:
                await self.round(is_census=rounds % CENSUS_ROUNDS == 0)
                rounds += 1
                if self._said:
                    _log.info("shadow.evaluation_recovered")
                self._said = ""
            except Exception as error:  # noqa: BLE001  # the task's edge: the next round tries again
                if repr(error) != self._said:
                    self._said = repr(error)
                    _log.warning("shadow.evaluation_failed", error=self._said)
            await self._clock.sleep(PERIOD_S)
