"""Analyses, decisions and deployments over HTTP.

A deployment needs no `Idempotency-Key`: while it stands, the same again changes nothing and another
one is refused.
"""

from uuid import UUID

import msgspec
from litestar import get, post
from litestar.handlers import HTTPRouteHandler

from tollkeeper.kernel.principal import Scope
from tollkeeper.shadow import errors
from tollkeeper.shadow.analysis import Analysis
from tollkeeper.shadow.decider import Decider
from tollkeeper.shadow.decision_messages import (
    DecisionsPage,
    DeploymentBody,
    DeploymentsView,
    DeploymentView,
    ProvenDeploymentView,
    RollbackBody,
    decision_view,
    deployment_view,
    evidence_view,
    reason_of,
)
from tollkeeper.shadow.outcome_api import AnyRequest, answer, experiment_id_of
from tollkeeper.shadow.outcome_messages import invalid
from tollkeeper.shadow.route_facts import DEPLOYMENT_ID, EXPERIMENT_ID, NUMBER_LIMIT, OF_DEPLOYMENT
from tollkeeper.shadow.service import ShadowService
from tollkeeper.web.answer import JsonAnswer
from tollkeeper.web.auth import authorize
from tollkeeper.web.body import decode_body, read_body
from tollkeeper.web.errors import RequestInvalid
from tollkeeper.web.openapi import Answer, Body, DocumentedOperation, RouteFacts, documented
from tollkeeper.web.page import AFTER, LIMIT, page_limit, page_start
from tollkeeper.web.problem import ProblemTable
from tollkeeper.web.query import query_of, refuse_query

_DEPLOY_DECODER = msgspec.json.Decoder(DeploymentBody)
_ROLLBACK_DECODER = msgspec.json.Decoder(RollbackBody)


class DecisionsApi:
    """The routes of decisions and deployments around what decides."""

    def __init__(self, service: ShadowService, decider: Decider, *, problems: ProblemTable) -> None:
        self._service = service
        self._decider = decider
        self._problems = problems

    def routes(self) -> list[HTTPRouteHandler]:
        """Return the route handlers."""
        experiment = "/v1/experiments/{experiment_id:str}"
        deployment = "/v1/deployments/{deployment_id:str}"

        def said(facts: RouteFacts) -> type[DocumentedOperation]:
            return documented(facts, self._problems)

        return [
            get(f"{experiment}/analysis", operation_class=said(_ANALYSE))(self.read_analysis),
            get(f"{experiment}/decisions", operation_class=said(_LIST))(self.list_decisions),
            post(f"{experiment}/deployments", operation_class=said(_DEPLOY))(self.deploy),
            get(f"{experiment}/deployments", operation_class=said(_DEPLOYMENTS))(
                self.list_deployments
            ),
            get(deployment, operation_class=said(_READ))(self.read_deployment),
            post(f"{deployment}/rollback", operation_class=said(_ROLL_BACK))(self.roll_back),
        ]

    async def read_analysis(self, request: AnyRequest) -> JsonAnswer:
        """Read what is known of an experiment now; a look that is due is taken first.

        Only planned looks decide: looking more often shows more, and decides nothing.
        """
        principal = authorize(request.scope, Scope.SHADOW_READ)
        refuse_query(request.scope)
        experiment_id = experiment_id_of(request.scope["path_params"]["experiment_id"])
        return answer(await self._decider.analysis(experiment_id, principal.tenant_id), 200)

    async def list_decisions(self, request: AnyRequest) -> JsonAnswer:
        """Read a page of what the gate decided, oldest first."""
        principal = authorize(request.scope, Scope.SHADOW_READ)
        query = query_of(request.scope, AFTER.name, LIMIT.name)
        experiment_id = experiment_id_of(request.scope["path_params"]["experiment_id"])
        after, count = page_start(query, most=NUMBER_LIMIT), page_limit(query)
        experiment = await self._service.read(experiment_id, principal.tenant_id)
        found = await self._decider.decisions(
            experiment_id, principal.tenant_id, after=after, limit=count + 1
        )
        page = found[:count]
        following = str(page[-1].sequence) if len(found) > count else None
        shown = [decision_view(each, experiment.definition) for each in page]
        return answer(DecisionsPage(shown, following), 200)

    async def deploy(self, request: AnyRequest) -> JsonAnswer:
        """Give a variant to everybody, if the gate lets it through.

        The last planned look must say so, and the data of this moment must not say otherwise; the
        experiment ends with it. There is no other way to a deployment. Asking again for what is
        deployed changes nothing, and answers 200.
        """
        principal = authorize(request.scope, Scope.SHADOW_DEPLOY)
        refuse_query(request.scope)
        experiment_id = experiment_id_of(request.scope["path_params"]["experiment_id"])
        body = decode_body(_DEPLOY_DECODER, await read_body(request.receive))
        tenant = principal.tenant_id
        experiment = await self._service.read(experiment_id, tenant)
        deployment, _, is_made = await self._decider.deploy(
            experiment_id, body.variant, tenant, by=str(principal.key_id)
        )
        view = deployment_view(deployment, experiment.definition)
        return answer(view, 201 if is_made else 200)

    async def list_deployments(self, request: AnyRequest) -> JsonAnswer:
        """Read all deployments of an experiment, oldest first."""
        principal = authorize(request.scope, Scope.SHADOW_READ)
        refuse_query(request.scope)
        experiment_id = experiment_id_of(request.scope["path_params"]["experiment_id"])
        experiment = await self._service.read(experiment_id, principal.tenant_id)
        found = await self._decider.deployments(experiment_id, principal.tenant_id)
        shown = [deployment_view(each, experiment.definition) for each in found]
        return answer(DeploymentsView(shown), 200)

    async def read_deployment(self, request: AnyRequest) -> JsonAnswer:
        """Read a deployment, and all that its decision was computed from."""
        principal = authorize(request.scope, Scope.SHADOW_READ)
        refuse_query(request.scope)
        deployment, experiment, decision = await self._decider.deployment(
            _deployment_id(request), principal.tenant_id
        )
        shown = deployment_view(deployment, experiment.definition)
        return answer(ProvenDeploymentView(shown, evidence_view(decision)), 200)

    async def roll_back(self, request: AnyRequest) -> JsonAnswer:
        """Take a deployment back: everybody gets the control again. It is always allowed.

        Taking it back again changes nothing.
        """
        principal = authorize(request.scope, Scope.SHADOW_DEPLOY)
        refuse_query(request.scope)
        deployment_id, tenant = _deployment_id(request), principal.tenant_id
        raw = await read_body(request.receive)
        reason = reason_of(decode_body(_ROLLBACK_DECODER, raw or b"{}"))
        deployment, _ = await self._decider.roll_back(
            deployment_id, tenant, by=str(principal.key_id), reason=reason
        )
        experiment = await self._service.read(deployment.experiment_id, tenant)
        return answer(deployment_view(deployment, experiment.definition), 200)


def _deployment_id(request: AnyRequest) -> UUID:
    text: str = request.scope["path_params"]["deployment_id"]
    try:
        found = UUID(text)
    except ValueError:
        found = None
    if found is None or str(found) != text.lower():
        raise invalid("deployment_id", "must be a UUID, as the service gave it")
    return found


_ANALYSE = RouteFacts(
    summary="Analyse an experiment",
    tag="decisions",
    scope=Scope.SHADOW_READ,
    parameters=(EXPERIMENT_ID,),
    answers={200: Answer(description="the analysis of this moment", view=Analysis)},
    problems=(RequestInvalid, errors.ExperimentNotFound, errors.ExperimentNotRunning),
)
_LIST = RouteFacts(
    summary="List decisions",
    tag="decisions",
    scope=Scope.SHADOW_READ,
    parameters=(EXPERIMENT_ID, AFTER, LIMIT),
    answers={200: Answer(description="a page, oldest first", view=DecisionsPage)},
    problems=(RequestInvalid, errors.ExperimentNotFound),
)
_DEPLOY = RouteFacts(
    summary="Deploy a variant",
    tag="deployments",
    scope=Scope.SHADOW_DEPLOY,
    parameters=(EXPERIMENT_ID,),
    body=Body(struct=DeploymentBody, example={"variant": "new"}),
    answers={
        201: Answer(description="deployed", view=DeploymentView, next_steps=OF_DEPLOYMENT),
        200: Answer(description="it was deployed before", view=DeploymentView),
    },
    problems=(
        RequestInvalid,
        errors.ExperimentNotFound,
        errors.ExperimentNotRunning,
        errors.VariantUnknown,
        errors.GateRefused,
        errors.AlreadyDeployed,
        errors.ShadowUnavailable,
    ),
)
_DEPLOYMENTS = RouteFacts(
    summary="List deployments",
    tag="deployments",
    scope=Scope.SHADOW_READ,
    parameters=(EXPERIMENT_ID,),
    answers={200: Answer(description="all, oldest first", view=DeploymentsView)},
    problems=(RequestInvalid, errors.ExperimentNotFound),
)
_READ = RouteFacts(
    summary="Read a deployment",
    tag="deployments",
    scope=Scope.SHADOW_READ,
    parameters=(DEPLOYMENT_ID,),
    answers={200: Answer(description="the deployment and its decision", view=ProvenDeploymentView)},
    problems=(RequestInvalid, errors.DeploymentNotFound),
)
_ROLL_BACK = RouteFacts(
    summary="Roll a deployment back",
    tag="deployments",
    scope=Scope.SHADOW_DEPLOY,
    parameters=(DEPLOYMENT_ID,),
    body=Body(
        struct=RollbackBody, example={"reason": "refunds went up"}, is_required=False
    ),
    answers={
        200: Answer(
            description="rolled back, now or before", view=DeploymentView,
            next_steps=OF_DEPLOYMENT,
        )
    },
    problems=(RequestInvalid, errors.DeploymentNotFound),
)  # fmt: skip
