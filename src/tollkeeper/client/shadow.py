"""Typed calls of the shadow service: experiments, assignments, outcomes, decisions, deployments.

Every call may be sent again, so a lost answer is asked for without a key: an experiment that is
there alike is returned, a change says what shall be and not by how much, a unit keeps the variant
it got first, an outcome counts once by its id (minted once for all attempts), what is deployed is
not deployed again, and a deployment is taken back once.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from urllib.parse import quote

import msgspec

from tollkeeper.client.caller import JSON, NOT_MODIFIED, Caller
from tollkeeper.client.errors import AnswerMalformed, CallMalformed
from tollkeeper.client.shadow_messages import (
    Assignment,
    AssignmentAnswer,
    AssignmentResult,
    CreatedExperiment,
    DecisionPage,
    DefinitionFields,
    Deployment,
    Deployments,
    Experiment,
    ExperimentPage,
    Outcome,
    OutcomeAnswer,
    OutcomeFields,
    OutcomeResult,
    ProvenDeployment,
    RecordedOutcome,
    Snapshot,
    Unit,
)
from tollkeeper.kernel.ids import mint_key

PAGE_LIMIT = 1_000
"""Most experiments or decisions on one page."""

BATCH_LIMIT = 10_000
"""Most units or outcomes in one request."""

VALUE_LIMIT = 10**12
"""Largest value of an outcome, to either side."""

DECIMALS = 6
"""Decimals of a value at most: the service keeps millionths."""

ANALYSIS_TIMEOUT_S = 60.0
"""Longest wait for a decision: the service computes posteriors for it."""

_ENCODER = msgspec.json.Encoder(decimal_format="number")


class ShadowClient(Caller):
    """The shadow service at a URL: see `Caller` for its connections, clock and retries."""

    def mint_outcome_id(self) -> str:
        """Mint an id for one outcome, to be used for all its attempts."""
        return mint_key(self._clock.now(), self._entropy())

    async def create(
        self,
        experiment_id: str,
        definition: DefinitionFields,
        *,
        tenant_id: str | None = None,
        start: bool = False,
    ) -> CreatedExperiment:
        """Create an experiment, a draft unless it is to `start`; one that is there alike is kept.

        Raises:
            CallRefused: the id stands for another experiment, or its namespace is taken.
            CallFailed: the definition cannot be; the problem names the field.
        """
        body: dict[str, object] = {"experiment_id": experiment_id, **definition}
        if tenant_id is not None:
            body["tenant_id"] = tenant_id
        if start:
            body["state"] = "running"
        response = await self._call("POST", "/v1/experiments", JSON, _encoded(body))
        return CreatedExperiment(self._decode(response, Experiment), response.status == 201)

    async def experiment(self, experiment_id: str) -> Experiment:
        """Return an experiment as it stands."""
        return self._decode(await self._call("GET", _of_experiment(experiment_id)), Experiment)

    async def experiments(
        self, *, state: str | None = None, after: str | None = None, limit: int = PAGE_LIMIT
    ) -> ExperimentPage:
        """Return a page of experiments, oldest first; `after` is a page's `next`."""
        path = f"/v1/experiments?{_query(limit=str(limit), state=state, after=after)}"
        return self._decode(await self._call("GET", path), ExperimentPage)

    async def change(
        self,
        experiment_id: str,
        definition: DefinitionFields | None = None,
        *,
        state: str | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> Experiment:
        """Change an experiment: its state, its weights, or while it is a draft its definition.

        Raises:
            CallRefused: it cannot be changed so, as it stands.
        """
        body: dict[str, object] = {**(definition or {})}
        if state is not None:
            body["state"] = state
        if weights is not None:
            body["weights"] = weights
        path = _of_experiment(experiment_id)
        return self._decode(await self._call("PATCH", path, JSON, _encoded(body)), Experiment)

    async def assign(
        self,
        experiment_id: str,
        unit_id: str,
        attributes: Mapping[str, str | int | float | bool | None] | None = None,
    ) -> Assignment:
        """Assign a unit to a variant, or return the one that it has.

        Raises:
            CallRefused: there is no such experiment, or it has not started.
        """
        unit = Unit(unit_id, None if attributes is None else dict(attributes))
        path = _of_experiment(experiment_id, "assignments")
        return self._decode(await self._call("POST", path, JSON, _encoded(unit)), Assignment)

    async def assign_batch(
        self, experiment_id: str, units: Sequence[Unit | str]
    ) -> tuple[AssignmentResult, ...]:
        """Assign units together; each succeeds or fails by itself, results in their order.

        A text is a unit of which nothing else is said.

        What the service could not take now (429, 503) is a result like others.
        """
        path = _of_experiment(experiment_id, "assignments")
        items = [Unit(each) if isinstance(each, str) else each for each in units]
        response = await self._call("POST", path, JSON, _encoded({"units": items}))
        results = self._decode(response, AssignmentAnswer).results
        self._check_count(results, units)
        return results

    async def record(
        self,
        experiment_id: str,
        unit_id: str,
        value: float | Decimal | None = None,
        *,
        metric: str | None = None,
        occurred_at: datetime | None = None,
        outcome_id: str | None = None,
    ) -> RecordedOutcome:
        """Record an outcome, once. Without an id one is minted and kept over this call's retries.

        A float is rounded to six decimals; a `Decimal` is sent as it is.

        Raises:
            CallRefused: the experiment or the unit is not known, or the id stands for another.
        """
        if outcome_id is None:
            outcome_id = self.mint_outcome_id()
        outcome = Outcome(experiment_id, unit_id, outcome_id, metric, value, occurred_at)
        body = _encoded(_sendable(outcome))
        response = await self._call("POST", "/v1/outcomes", JSON, body)
        recorded = self._decode(response, RecordedOutcome)
        return msgspec.structs.replace(recorded, outcome_id=outcome_id)

    async def record_batch(
        self, outcomes: Sequence[Outcome | OutcomeFields]
    ) -> tuple[OutcomeResult, ...]:
        """Record outcomes together; each succeeds or fails by itself, results in their order.

        One without an id gets one, kept over this call's retries. What the service could not take
        now (429, 503) is a result like others: send it again with its id.
        """
        given = [each if isinstance(each, Outcome) else Outcome(**each) for each in outcomes]
        named = [
            outcome
            if outcome.outcome_id is not None
            else msgspec.structs.replace(outcome, outcome_id=self.mint_outcome_id())
            for outcome in given
        ]
        body = _encoded({"outcomes": [_sendable(outcome) for outcome in named]})
        answer = self._decode(await self._call("POST", "/v1/outcomes", JSON, body), OutcomeAnswer)
        self._check_count(answer.results, named)
        return tuple(
            result
            if result.outcome is None
            else msgspec.structs.replace(
                result,
                outcome=msgspec.structs.replace(result.outcome, outcome_id=sent.outcome_id or ""),
            )
            for sent, result in zip(named, answer.results, strict=True)
        )

    async def analysis(self, experiment_id: str) -> bytes:
        """Return what an experiment shows now, as the service's JSON document.

        A look that is due is taken first.
        """
        path = _of_experiment(experiment_id, "analysis")
        return (await self._call("GET", path, timeout_s=ANALYSIS_TIMEOUT_S)).body

    async def decisions(
        self, experiment_id: str, *, after: str | None = None, limit: int = PAGE_LIMIT
    ) -> DecisionPage:
        """Return a page of what the gate decided, oldest first; `after` is a page's `next`."""
        path = _of_experiment(experiment_id, "decisions")
        query = _query(limit=str(limit), after=after)
        return self._decode(await self._call("GET", f"{path}?{query}"), DecisionPage)

    async def deploy(self, experiment_id: str, variant: str) -> Deployment:
        """Give a variant to everybody, or return its deployment when that is so.

        Raises:
            CallRefused: the gate does not let it through (`gate-refused`; its facts say why), or
                another variant is deployed.
        """
        path = _of_experiment(experiment_id, "deployments")
        body = _encoded({"variant": variant})
        response = await self._call("POST", path, JSON, body, timeout_s=ANALYSIS_TIMEOUT_S)
        return self._decode(response, Deployment)

    async def roll_back(self, deployment_id: str, *, reason: str | None = None) -> Deployment:
        """Take a deployment back; the first reason stands."""
        path = f"{_of_deployment(deployment_id)}/rollback"
        body = _encoded({} if reason is None else {"reason": reason})
        return self._decode(await self._call("POST", path, JSON, body), Deployment)

    async def deployments(self, experiment_id: str) -> tuple[Deployment, ...]:
        """Return all deployments of an experiment, oldest first."""
        path = _of_experiment(experiment_id, "deployments")
        return self._decode(await self._call("GET", path), Deployments).items

    async def deployment(self, deployment_id: str) -> ProvenDeployment:
        """Return a deployment, and all that its decision was computed from."""
        path = _of_deployment(deployment_id)
        return self._decode(await self._call("GET", path), ProvenDeployment)

    async def snapshot(self, known: str | None = None) -> Snapshot | None:
        """Return what it takes to choose in one's own process; None: `known` is its version."""
        headers = () if known is None else (("If-None-Match", f'"{known}"'),)
        response = await self._call("GET", "/v1/snapshot", headers)
        return None if response.status == NOT_MODIFIED else self._decode(response, Snapshot)

    def _check_count(self, results: Sequence[object], sent: Sequence[object]) -> None:
        if len(results) != len(sent):
            reason = f"{len(results)} results for {len(sent)} items"
            raise AnswerMalformed(url=self._url, reason=reason)


def _of_experiment(experiment_id: str, *more: str) -> str:
    return "/".join(("/v1/experiments", _segment("experiment_id", experiment_id), *more))


def _of_deployment(deployment_id: str) -> str:
    return f"/v1/deployments/{_segment('deployment_id', deployment_id)}"


def _segment(field: str, name: str) -> str:
    if not name or "/" in name:
        raise CallMalformed(field=field, fault="must not be empty nor contain a slash")
    try:
        return quote(name, safe="")
    except UnicodeEncodeError as error:
        raise CallMalformed(field=field, fault="is not valid Unicode text") from error


def _query(**asked: str | None) -> str:
    try:
        return "&".join(
            f"{name}={quote(value, safe='')}" for name, value in asked.items() if value is not None
        )
    except UnicodeEncodeError as error:
        raise CallMalformed(field="the request", fault="has text that is not Unicode") from error


def _sendable(outcome: Outcome) -> Outcome:
    """Return an outcome as it is sent: a float is not exact anyway, and rounded to its decimals.

    Raises:
        CallMalformed: it is not a number, which JSON does not know either, or too large.
    """
    value = outcome.value
    if value is None:
        return outcome
    is_number = value.is_finite() if isinstance(value, Decimal) else True
    if not is_number or not -VALUE_LIMIT <= value <= VALUE_LIMIT:
        raise CallMalformed(field="value", fault=f"must be a number, up to {VALUE_LIMIT:,}")
    if isinstance(value, float):
        return msgspec.structs.replace(outcome, value=round(value, DECIMALS))
    if isinstance(value, bool):
        return msgspec.structs.replace(outcome, value=int(value))
    return outcome


def _encoded(document: object) -> bytes:
    try:
        return _ENCODER.encode(document)
    except UnicodeEncodeError as error:
        raise CallMalformed(field="the request", fault="has text that is not Unicode") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise CallMalformed(field="the request", fault=f"is no JSON: {error}") from error
