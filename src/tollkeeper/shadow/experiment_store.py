"""The rows of experiments: runs the blocks of `experiments.sql` on a given connection.

Decides nothing. What changes an experiment is a function of the schema, which the service's role
may call and cannot get around.
"""

from collections.abc import Sequence

import asyncpg
import msgspec

from tollkeeper.database.driver import Connection, Row
from tollkeeper.database.queries import load_queries
from tollkeeper.kernel.ids import TenantId
from tollkeeper.shadow.errors import NamespaceTaken
from tollkeeper.shadow.model import (
    Definition,
    Epoch,
    Experiment,
    ExperimentId,
    ExperimentState,
)

NAMESPACE_TAKEN = "TK002"
"""What `move_experiment` raises when a range overlaps; its detail names the other experiment."""


class ExperimentStore:
    """Reads and changes of experiments; every method is one statement."""

    def __init__(self) -> None:
        self._sql = load_queries("tollkeeper.shadow")

    async def create(
        self,
        connection: Connection,
        experiment_id: ExperimentId,
        tenant_id: TenantId,
        definition: Definition,
    ) -> bool:
        """Make a draft; false when the id stands for another experiment."""
        text = msgspec.json.encode(definition).decode()
        sql = self._sql["create_experiment"]
        return await connection.fetchval(sql, experiment_id, tenant_id, text) is not None

    async def define(
        self, connection: Connection, experiment: Experiment, definition: Definition
    ) -> bool:
        """Change a draft; false when it is none any more, or was changed meanwhile."""
        text = msgspec.json.encode(definition).decode()
        sql = self._sql["define_experiment"]
        done: bool = await connection.fetchval(
            sql, experiment.experiment_no, experiment.version, text
        )
        return done

    async def move(
        self, connection: Connection, experiment: Experiment, state: ExperimentState
    ) -> bool:
        """Bring an experiment to a state; false when it was changed meanwhile, or has no way there.

        Raises:
            NamespaceTaken: another running experiment has a part of its range.
        """
        sql = self._sql["move_experiment"]
        try:
            done: bool = await connection.fetchval(
                sql, experiment.experiment_no, experiment.version, state.value
            )
        except asyncpg.PostgresError as error:
            namespace = experiment.definition.namespace
            if error.sqlstate != NAMESPACE_TAKEN or namespace is None:
                raise
            raise NamespaceTaken(namespace=namespace.name, other=str(error.detail)) from error
        return done

    async def begin_epoch(
        self, connection: Connection, experiment: Experiment, weights: Sequence[float]
    ) -> bool:
        """Begin the next epoch; false when another began, or the experiment does not run."""
        sql, following = self._sql["begin_epoch"], len(experiment.epochs) + 1
        done: bool = await connection.fetchval(
            sql, experiment.experiment_no, following, list(weights)
        )
        return done

    async def read(self, connection: Connection, experiment_id: str) -> Experiment | None:
        """Return an experiment as it stands."""
        row = await connection.fetchrow(self._sql["experiment"], experiment_id)
        return None if row is None else experiment_of(row)

    async def by_numbers(self, connection: Connection, numbers: Sequence[int]) -> list[Experiment]:
        """Return the experiments of these numbers, as far as there are any."""
        rows = await connection.fetch(self._sql["experiments_by_number"], numbers)
        return [experiment_of(row) for row in rows]

    async def page(
        self,
        connection: Connection,
        tenant_id: TenantId | None,
        state: ExperimentState | None,
        *,
        after: int,
        limit: int,
    ) -> list[Experiment]:
        """Return up to `limit` experiments with a number above `after`, oldest first."""
        rows = await connection.fetch(self._sql["experiments"], after, tenant_id, state, limit)
        return [experiment_of(row) for row in rows]

    async def of_interest(self, connection: Connection, *, limit: int) -> list[Experiment]:
        """Return up to `limit` experiments that units are assigned by, oldest first."""
        rows = await connection.fetch(self._sql["experiments_of_interest"], limit)
        return [experiment_of(row) for row in rows]

    async def counts(self, connection: Connection) -> dict[ExperimentState, int]:
        """Return how many experiments are in each state."""
        rows = await connection.fetch(self._sql["experiment_counts"])
        found = {ExperimentState(row["state"]): row["experiments"] for row in rows}
        return {state: found.get(state, 0) for state in ExperimentState}


def experiment_of(row: Row) -> Experiment:
    """Read an experiment from a row of the blocks here."""
    return Experiment(
        experiment_no=row["experiment_no"],
        experiment_id=ExperimentId(row["experiment_id"]),
        tenant_id=TenantId(row["tenant_id"]),
        definition=msgspec.json.decode(row["definition"], type=Definition),
        state=ExperimentState(row["state"]),
        version=row["version"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        epochs=tuple(
            Epoch(epoch=number, begun_at=begun_at, weights=tuple(weights))
            for number, (begun_at, weights) in enumerate(
                zip(row["begun_at"], row["weights"] or (), strict=True), start=1
            )
        ),
        deployed_no=row["deployed_no"],
    )
