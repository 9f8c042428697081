"""Decisions: looks that are due, deployments and their way back, and what an experiment shows.

What is decided follows from the inputs alone (`decision.py`); here it is seen to that the inputs
are what is in the database while it is decided, and that the database takes it. Deciding owns the
experiment for some milliseconds: nobody counts meanwhile.

A deployment needs two decisions: the look that said so, and a confirmation on the data of the
moment, which can only take away. Rolling back needs nothing.
"""

import asyncio
import hashlib
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import asyncpg
import msgspec
import structlog

from tollkeeper.database.driver import Connection
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.clock import Clock
from tollkeeper.kernel.ids import EntropySource, TenantId, compose_id, milliseconds_since_epoch
from tollkeeper.shadow.analysis import Analysis, analyse
from tollkeeper.shadow.catalogue import Catalogue
from tollkeeper.shadow.decision import Decided, decide
from tollkeeper.shadow.decision_store import (
    MOVED,
    NOT_DUE,
    REFUSED,
    DecisionStore,
    NewDecision,
    refusal_of,
)
from tollkeeper.shadow.errors import (
    AlreadyDeployed,
    DeploymentNotFound,
    ExperimentNotRunning,
    GateRefused,
)
from tollkeeper.shadow.experiment_store import ExperimentStore
from tollkeeper.shadow.looks import Standing, due_look, next_look_at
from tollkeeper.shadow.metrics import DecisionMetrics
from tollkeeper.shadow.model import (
    Decision,
    Deployment,
    Experiment,
    ExperimentId,
    ExperimentState,
    Verdict,
)
from tollkeeper.shadow.service import lent, visible

MAX_SEED: Final = (1 << 63) - 1
"""The database keeps a seed in 64 bits with a sign."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruments:
    """What deciding takes from outside: time, randomness, the versions of what computes."""

    clock: Clock
    entropy: EntropySource
    code: str


class Decider:
    """Takes looks, deploys and takes back. A caller bound to a tenant sees that tenant's alone."""

    def __init__(
        self,
        store: DecisionStore,
        experiments: ExperimentStore,
        catalogue: Catalogue,
        *,
        writes: Pool,
        reads: Pool,
        metrics: DecisionMetrics,
        instruments: Instruments,
    ) -> None:
        self._store = store
        self._experiments = experiments
        self._catalogue = catalogue
        self._writes = writes
        self._reads = reads
        self._metrics = metrics
        self._with = instruments

    async def standings(self) -> list[Standing]:
        """Return how far the experiments that go on are."""
        async with self._reads.connection() as connection:
            return await self._store.standings(connection)

    async def without_testing(self) -> int:
        """Return how many deployments stand on no decision: 0."""
        async with self._reads.connection() as connection:
            return await self._store.without_testing(connection)

    async def counts(self) -> dict[ExperimentState, int]:
        """Return how many experiments are in each state."""
        async with self._reads.connection() as connection:
            return await self._experiments.counts(connection)

    async def take_look(self, standing: Standing) -> Decision | None:
        """Take the look that is due; None: none is, or another process was faster.

        Raises:
            ShadowUnavailable: try again.
        """
        if due_look(standing) is None:
            return None
        async with lent(self._writes) as connection:
            try:
                async with connection.transaction():
                    decision = await self._look(connection, standing)
            except asyncpg.PostgresError as error:
                # Somebody who takes no lock, or an experiment that has just ended.
                if refusal_of(error)[0] not in {MOVED, NOT_DUE}:
                    raise
                return None
        if decision is not None:
            self._tell(decision, standing.experiment_id)
            await self._learn(standing.experiment_id)
        return decision

    async def analysis(self, experiment_id: str, tenant_id: TenantId | None) -> Analysis:
        """Return what an experiment shows; a look that is due is taken first.

        Raises:
            ExperimentNotFound: there is none, or it is another tenant's.
            ShadowUnavailable: try again.
        """
        async with self._reads.connection() as connection:
            found = await self._experiments.read(connection, experiment_id)
            experiment = visible(found, experiment_id, tenant_id)
            standings = await self._store.standings(connection, experiment.experiment_no)
        for standing in standings:
            await self.take_look(standing)
        async with (
            self._reads.connection() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            last = await self._store.last_look(connection, experiment.experiment_no)
            _, inputs = await self._store.inputs(connection, experiment.experiment_no)
        # Always the same draws: who reads again sees what has changed, and not other chance.
        digest = hashlib.sha256(experiment_id.encode()).digest()
        seed = int.from_bytes(digest[:8], "big") & MAX_SEED
        return await asyncio.to_thread(analyse, inputs, seed=seed, last_look=last)

    async def decisions(
        self, experiment_id: str, tenant_id: TenantId | None, *, after: int, limit: int
    ) -> list[Decision]:
        """Return up to `limit` decisions of an experiment above a sequence, oldest first.

        Raises:
            ExperimentNotFound: there is none, or it is another tenant's.
        """
        async with self._reads.connection() as connection:
            found = await self._experiments.read(connection, experiment_id)
            experiment = visible(found, experiment_id, tenant_id)
            number = experiment.experiment_no
            return await self._store.decisions(connection, number, after=after, limit=limit)

    async def deploy(
        self, experiment_id: str, variant: str, tenant_id: TenantId | None, *, by: str
    ) -> tuple[Deployment, Decision, bool]:
        """Give a variant to everybody, if it was proven; the last is whether this did it.

        Asking again for what is deployed changes nothing, so that a lost answer can be asked for.

        Raises:
            ExperimentNotFound: there is none, or it is another tenant's.
            VariantUnknown: it has no such variant.
            ExperimentNotRunning: it has not begun, or has ended.
            AlreadyDeployed: another variant is.
            GateRefused: not proven, or not any more; it says which conditions fail.
            ShadowUnavailable: try again.
        """
        async with lent(self._writes) as connection:
            made: Deployment | None = None
            async with connection.transaction():
                found = await self._experiments.read(connection, experiment_id)
                experiment = visible(found, experiment_id, tenant_id)
                variant_no = experiment.definition.variant_no(experiment_id, variant)
                await self._store.own(connection, experiment.experiment_no)
                found = await self._experiments.read(connection, experiment_id)
                experiment = visible(found, experiment_id, tenant_id)
                standing = await self._deployed(connection, experiment, variant_no)
                if standing is not None:
                    return *standing, False
                confirmation, refusal = await self._confirm(connection, experiment, variant_no)
                if confirmation is not None:
                    made = await self._insert(connection, experiment, confirmation, by=by)
        # A refused confirmation is kept: it was committed with the block.
        await self._learn(experiment.experiment_id)
        self._metrics.deployment("deployed" if refusal is None else "refused")
        if refusal is not None:
            _log.info(
                "shadow.deployment_refused", experiment=experiment_id, variant=variant,
                tenant=experiment.tenant_id, reasons=list(refusal.reasons), actor=by,
            )  # fmt: skip
            raise refusal
        assert made is not None
        assert confirmation is not None
        _log.info(
            "shadow.deployed", experiment=experiment_id, variant=variant, actor=by,
            tenant=experiment.tenant_id, deployment=str(made.deployment_id),
        )  # fmt: skip
        return made, confirmation, True

    async def roll_back(
        self, deployment_id: UUID, tenant_id: TenantId | None, *, by: str, reason: str | None
    ) -> tuple[Deployment, bool]:
        """Take a deployment back, always; the last is whether this did it.

        Raises:
            DeploymentNotFound: there is none, or it is another tenant's.
            ShadowUnavailable: try again.
        """
        async with lent(self._writes) as connection:
            await self._found(connection, deployment_id, tenant_id)
            done = await self._store.roll_back(connection, deployment_id, by=by, reason=reason)
            deployment = await self._found(connection, deployment_id, tenant_id)
            experiment = await self._experiments.read(connection, deployment.experiment_id)
        assert experiment is not None
        self._catalogue.learn(experiment)
        if done:
            self._metrics.deployment("rolled_back")
            _log.warning(
                "shadow.rolled_back", experiment=deployment.experiment_id, actor=by,
                tenant=deployment.tenant_id, deployment=str(deployment_id), reason=reason,
            )  # fmt: skip
        return deployment, done

    async def deployment(
        self, deployment_id: UUID, tenant_id: TenantId | None
    ) -> tuple[Deployment, Experiment, Decision]:
        """Return a deployment, its experiment, and the decision that it stands on.

        Raises:
            DeploymentNotFound: there is none, or it is another tenant's.
        """
        async with self._reads.connection() as connection:
            deployment = await self._found(connection, deployment_id, tenant_id)
            experiment = await self._experiments.read(connection, deployment.experiment_id)
            decision = await self._store.decision(connection, deployment.decision_no)
        assert experiment is not None
        if decision is None:  # somebody took the foreign key away
            raise DeploymentNotFound(deployment_id=deployment_id)
        return deployment, experiment, decision

    async def deployments(self, experiment_id: str, tenant_id: TenantId | None) -> list[Deployment]:
        """Return all deployments of an experiment, oldest first.

        Raises:
            ExperimentNotFound: there is none, or it is another tenant's.
        """
        async with self._reads.connection() as connection:
            found = await self._experiments.read(connection, experiment_id)
            experiment = visible(found, experiment_id, tenant_id)
            return await self._store.deployments(connection, experiment.experiment_no)

    async def _look(self, connection: Connection, standing: Standing) -> Decision | None:
        """Take a look on the data of this moment, in the caller's unit of work."""
        await self._store.own(connection, standing.experiment_no)
        # Again, now that nobody else can look or count.
        for now in await self._store.standings(connection, standing.experiment_no):
            look = due_look(now)
            if look is not None:
                decision, decided = await self._decide(
                    connection, now.experiment_no, kind="look", look=look
                )
                await self._adapt(connection, now.experiment_id, decided)
                return decision
        return None

    async def _decide(
        self, connection: Connection, experiment_no: int, *, kind: str, look: int
    ) -> tuple[Decision, Decided]:
        moment, inputs = await self._store.inputs(connection, experiment_no)
        seed, code = self._with.entropy() & MAX_SEED, self._with.code
        decided = await asyncio.to_thread(
            decide, inputs, look=look, kind=kind, seed=seed, code=code
        )
        number = await self._store.record(
            connection,
            experiment_no,
            NewDecision(
                kind=kind, look=look, as_of=moment, lifetime=decided.lifetime,
                verdict=decided.verdict, variant_no=decided.variant_no, inputs=inputs, seed=seed,
                code=code, document=decided.document,
            ),
        )  # fmt: skip
        decision = await self._store.decision(connection, number)
        assert decision is not None
        return decision, decided

    async def _adapt(
        self, connection: Connection, experiment_id: ExperimentId, decided: Decided
    ) -> None:
        """Begin the epoch of the weights that a look gives an adaptive experiment."""
        weights = decided.weights_next
        if weights is None or decided.verdict is Verdict.DEPLOY:
            return
        experiment = await self._experiments.read(connection, experiment_id)
        assert experiment is not None
        is_running = experiment.state is ExperimentState.RUNNING
        if is_running and weights != experiment.weights:
            await self._experiments.begin_epoch(connection, experiment, weights)

    async def _deployed(
        self, connection: Connection, experiment: Experiment, variant_no: int
    ) -> tuple[Deployment, Decision] | None:
        """Return what is deployed already, if it is the variant.

        Raises:
            AlreadyDeployed: another one is.
            ExperimentNotRunning: none is, and none can be.
        """
        name = experiment.experiment_id
        if experiment.deployed_no is None:
            if experiment.state not in {ExperimentState.RUNNING, ExperimentState.PAUSED}:
                raise ExperimentNotRunning(experiment_id=name, state=experiment.state)
            return None
        if experiment.deployed_no != variant_no:
            raise AlreadyDeployed(experiment_id=name)
        all_of_it = await self._store.deployments(connection, experiment.experiment_no)
        deployment = next(each for each in all_of_it if each.rolled_back_at is None)
        decision = await self._store.decision(connection, deployment.decision_no)
        assert decision is not None
        return deployment, decision

    async def _confirm(
        self, connection: Connection, experiment: Experiment, variant_no: int
    ) -> tuple[Decision | None, GateRefused | None]:
        """Decide once more for a variant that a look let through; or say why it is refused."""
        names, name = experiment.definition.names, experiment.experiment_id
        look = await self._store.last_look(connection, experiment.experiment_no)

        def refused(verdict: str, *reasons: str) -> GateRefused:
            return GateRefused(
                experiment_id=name, variant=names[variant_no], verdict=verdict, reasons=reasons
            )

        if look is None:
            return None, refused(Verdict.HOLD, "no look has been taken yet")
        if look.verdict is not Verdict.DEPLOY:
            return None, refused(look.verdict, *reasons_of(look))
        if look.variant_no is None or look.variant_no != variant_no:
            winner = names[look.variant_no or 0]
            return None, refused(Verdict.HOLD, f"the verdict is for variant {winner}")
        if look.expires_at is None or look.expires_at <= self._with.clock.now():
            definition = experiment.definition
            is_over = definition.looks is not None and not next_look_at(definition, look.look)
            follows = "its plan is used up: create another" if is_over else "the next look decides"
            return None, refused(Verdict.HOLD, f"the verdict has expired; {follows}")
        decision, _ = await self._decide(
            connection, experiment.experiment_no, kind="confirmation", look=look.look
        )
        if decision.verdict is not Verdict.DEPLOY or decision.variant_no != variant_no:
            told = "the data since the look do not confirm it"
            return None, refused(decision.verdict, told, *reasons_of(decision))
        return decision, None

    async def _insert(
        self, connection: Connection, experiment: Experiment, decision: Decision, *, by: str
    ) -> Deployment:
        deployment_id = compose_id(
            milliseconds_since_epoch(self._with.clock.now()), self._with.entropy(), 0
        )
        try:
            await self._store.deploy(connection, deployment_id, decision.decision_no, by=by)
        except asyncpg.PostgresError as error:
            state, told = refusal_of(error)
            if state != REFUSED:
                raise
            raise GateRefused(
                experiment_id=experiment.experiment_id,
                variant=experiment.definition.names[decision.variant_no or 0],
                verdict=Verdict.HOLD,
                reasons=(told,),
            ) from error
        made = await self._store.deployment(connection, deployment_id)
        assert made is not None
        return made

    async def _found(
        self, connection: Connection, deployment_id: UUID, tenant_id: TenantId | None
    ) -> Deployment:
        deployment = await self._store.deployment(connection, deployment_id)
        if deployment is None or (tenant_id is not None and deployment.tenant_id != tenant_id):
            raise DeploymentNotFound(deployment_id=deployment_id)
        return deployment

    async def _learn(self, experiment_id: ExperimentId) -> None:
        """Have this process know an experiment as it is now."""
        async with self._reads.connection() as connection:
            experiment = await self._experiments.read(connection, experiment_id)
        if experiment is not None:
            self._catalogue.learn(experiment)

    def _tell(self, decision: Decision, experiment_id: ExperimentId) -> None:
        self._metrics.decided(decision.kind, decision.verdict)
        self._metrics.show_best(experiment_id, best_of(decision))
        _log.info(
            "shadow.look_taken", experiment=experiment_id, look=decision.look,
            verdict=decision.verdict.value, sequence=decision.sequence,
        )  # fmt: skip


class _Condition(msgspec.Struct):
    holds: bool
    reason: str


class _Arm(msgspec.Struct):
    variant: str
    probability_best: float | None = None


class _Document(msgspec.Struct):
    conditions: list[_Condition]
    arms: list[_Arm]


def reasons_of(decision: Decision) -> tuple[str, ...]:
    """Return what a decision says of each condition that is not met."""
    document = msgspec.json.decode(decision.document, type=_Document)
    return tuple(each.reason for each in document.conditions if not each.holds)


def best_of(decision: Decision) -> dict[str, float]:
    """Return P(best) of every variant, as a decision has it; empty while nobody can say."""
    document = msgspec.json.decode(decision.document, type=_Document)
    return {
        arm.variant: arm.probability_best
        for arm in document.arms
        if arm.probability_best is not None
    }
