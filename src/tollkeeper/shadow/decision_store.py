"""The rows of decisions and deployments: runs the blocks of `decisions.sql`.

Decides nothing. Both come to be through functions of the schema, which look again themselves.
"""

from datetime import datetime, timedelta
from uuid import UUID

import asyncpg
import msgspec

from tollkeeper.database.driver import Connection, Row
from tollkeeper.database.queries import load_queries
from tollkeeper.kernel.ids import TenantId
from tollkeeper.shadow.looks import Standing
from tollkeeper.shadow.model import Decision, Definition, Deployment, ExperimentId, Verdict

MOVED = "TK001"
NOT_DUE = "TK003"
DOUBTFUL = "TK004"
REFUSED = "TK005"
"""What the schema's functions raise: see `record_decision` and `check_deployment`."""


class NewDecision(msgspec.Struct, frozen=True, kw_only=True):
    """A decision that is to be kept: see `model.Decision`."""

    kind: str
    look: int
    as_of: datetime
    lifetime: timedelta
    verdict: Verdict
    variant_no: int | None
    inputs: str
    seed: int
    code: str
    document: str


class DecisionStore:
    """Reads and writes of decisions and deployments; every method is one statement."""

    def __init__(self) -> None:
        self._sql = load_queries("tollkeeper.shadow")

    async def own(self, connection: Connection, experiment_no: int) -> None:
        """Keep everybody else from counting, changing and deciding until the commit."""
        await connection.execute(self._sql["own_experiment"], experiment_no)

    async def inputs(self, connection: Connection, experiment_no: int) -> tuple[datetime, str]:
        """Return the moment, and all that a decision at it depends on."""
        (row,) = await connection.fetch(self._sql["inputs"], experiment_no)
        return row["moment"], row["inputs"]

    async def standings(
        self, connection: Connection, experiment_no: int | None = None
    ) -> list[Standing]:
        """Return how far the experiments that go on are; all, or the one if it does."""
        rows = await connection.fetch(self._sql["standings"], experiment_no)
        return [_standing(row) for row in rows]

    async def record(self, connection: Connection, experiment_no: int, made: NewDecision) -> int:
        """Keep a decision and return its number; the caller owns the experiment.

        Raises:
            asyncpg.PostgresError: with `MOVED`, `NOT_DUE` or `DOUBTFUL`: it cannot be one.
        """
        number: int = await connection.fetchval(
            self._sql["record_decision"], experiment_no, made.kind, made.look, made.as_of,
            made.lifetime, made.verdict.value, made.variant_no, made.inputs, made.seed, made.code,
            made.document,
        )  # fmt: skip
        return number

    async def decision(self, connection: Connection, decision_no: int) -> Decision | None:
        """Return a decision."""
        row = await connection.fetchrow(self._sql["decision"], decision_no)
        return None if row is None else _decision(row)

    async def last_look(self, connection: Connection, experiment_no: int) -> Decision | None:
        """Return what the last look decided."""
        row = await connection.fetchrow(self._sql["last_look"], experiment_no)
        return None if row is None else _decision(row)

    async def decisions(
        self, connection: Connection, experiment_no: int, *, after: int, limit: int
    ) -> list[Decision]:
        """Return up to `limit` decisions with a sequence above `after`, oldest first."""
        rows = await connection.fetch(self._sql["decisions"], experiment_no, after, limit)
        return [_decision(row) for row in rows]

    async def deploy(
        self, connection: Connection, deployment_id: UUID, decision_no: int, *, by: str
    ) -> None:
        """Give the decision's variant to everybody.

        Raises:
            asyncpg.PostgresError: with `REFUSED`: its detail says why; or it is deployed already.
        """
        await connection.execute(self._sql["deploy_variant"], deployment_id, decision_no, by)

    async def roll_back(
        self, connection: Connection, deployment_id: UUID, *, by: str, reason: str | None
    ) -> bool:
        """Take a deployment back; false when it was before."""
        sql = self._sql["roll_back_deployment"]
        done: bool = await connection.fetchval(sql, deployment_id, by, reason)
        return done

    async def deployment(self, connection: Connection, deployment_id: UUID) -> Deployment | None:
        """Return a deployment."""
        row = await connection.fetchrow(self._sql["deployment"], deployment_id)
        return None if row is None else _deployment(row)

    async def deployments(self, connection: Connection, experiment_no: int) -> list[Deployment]:
        """Return all deployments of an experiment, oldest first."""
        rows = await connection.fetch(self._sql["deployments"], experiment_no)
        return [_deployment(row) for row in rows]

    async def without_testing(self, connection: Connection) -> int:
        """Return how many deployments stand on no decision."""
        found: int = await connection.fetchval(self._sql["deployments_without_testing"])
        return found


def refusal_of(error: BaseException) -> tuple[str | None, str]:
    """Return the state that the schema's functions raised with, and what they said."""
    if not isinstance(error, asyncpg.PostgresError):
        return None, str(error)
    return error.sqlstate, str(error.detail or error)


def _standing(row: Row) -> Standing:
    verdict = row["verdict"]
    return Standing(
        experiment_no=row["experiment_no"],
        experiment_id=ExperimentId(row["experiment_id"]),
        definition=msgspec.json.decode(row["definition"], type=Definition),
        moment=row["moment"],
        counted=row["counted"],
        look=row["look"],
        verdict=None if verdict is None else Verdict(verdict),
        expires_at=row["expires_at"],
        counted_then=row["counted_then"],
    )


def _decision(row: Row) -> Decision:
    return Decision(**{**dict(row), "verdict": Verdict(row["verdict"])})


def _deployment(row: Row) -> Deployment:
    return Deployment(
        **{
            **dict(row),
            "experiment_id": ExperimentId(row["experiment_id"]),
            "tenant_id": TenantId(row["tenant_id"]),
        }
    )
