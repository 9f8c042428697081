"""Experiments over HTTP: defining, changing, reading, and the snapshot that clients choose by.

Handlers take the raw request and answer bytes, as in the ledger's `api.py`. Creating the same
experiment again changes nothing, so it needs no `Idempotency-Key`.
"""

from collections.abc import Iterable, Mapping

import msgspec
from litestar import get, patch, post
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.spec import Parameter, Schema
from litestar.openapi.spec.enums import OpenAPIType

from tollkeeper.kernel.ids import TenantId
from tollkeeper.kernel.principal import Principal, Scope
from tollkeeper.shadow import errors
from tollkeeper.shadow.messages import (
    ChangeBody,
    ExperimentBody,
    change_of,
    definition_of,
)
from tollkeeper.shadow.model import ExperimentState
from tollkeeper.shadow.outcome_api import AnyRequest, answer, experiment_id_of
from tollkeeper.shadow.outcome_messages import invalid
from tollkeeper.shadow.requests import DEFAULT_TENANT, Change
from tollkeeper.shadow.route_facts import EXPERIMENT_ID, NUMBER_LIMIT, OF_EXPERIMENT
from tollkeeper.shadow.service import ShadowService
from tollkeeper.shadow.views import (
    ExperimentsPage,
    ExperimentView,
    SnapshotView,
    experiment_view,
    snapshot_view,
)
from tollkeeper.web.answer import EmptyAnswer, JsonAnswer
from tollkeeper.web.auth import authorize
from tollkeeper.web.body import decode_body, read_body
from tollkeeper.web.errors import RequestInvalid
from tollkeeper.web.openapi import Answer, Body, DocumentedOperation, RouteFacts, documented
from tollkeeper.web.page import AFTER, LIMIT, page_limit, page_start
from tollkeeper.web.problem import ProblemTable
from tollkeeper.web.query import query_of, refuse_query

NOT_MODIFIED = 304

_CREATE_DECODER = msgspec.json.Decoder(ExperimentBody)
_CHANGE_DECODER = msgspec.json.Decoder(ChangeBody)


class ExperimentsApi:
    """The routes of experiments around their service."""

    def __init__(self, service: ShadowService, *, problems: ProblemTable) -> None:
        self._service = service
        self._problems = problems

    def routes(self) -> list[HTTPRouteHandler]:
        """Return the route handlers."""
        experiments, experiment = "/v1/experiments", "/v1/experiments/{experiment_id:str}"

        def said(facts: RouteFacts) -> type[DocumentedOperation]:
            return documented(facts, self._problems)

        return [
            post(experiments, operation_class=said(_CREATE))(self.create_experiment),
            get(experiments, operation_class=said(_LIST))(self.list_experiments),
            get(experiment, operation_class=said(_READ))(self.read_experiment),
            patch(experiment, operation_class=said(_CHANGE))(self.change_experiment),
            get("/v1/snapshot", operation_class=said(_SNAPSHOT))(self.read_snapshot),
        ]

    async def create_experiment(self, request: AnyRequest) -> JsonAnswer:
        """Define an experiment, and start it if its state shall be running.

        Creating it again alike changes nothing and answers 200; defined otherwise, 409.
        """
        principal = authorize(request.scope, Scope.SHADOW_WRITE)
        refuse_query(request.scope)
        body = decode_body(_CREATE_DECODER, await read_body(request.receive))
        tenant = _tenant_of(body.tenant_id, principal)
        definition = definition_of(body)
        experiment, is_made = await self._service.create(body.experiment_id, definition, tenant)
        if body.state == "running" and experiment.state is ExperimentState.DRAFT:
            change = Change(state=ExperimentState.RUNNING)
            experiment = await self._service.change(body.experiment_id, tenant, change)
        return answer(experiment_view(experiment), 201 if is_made else 200)

    async def list_experiments(self, request: AnyRequest) -> JsonAnswer:
        """Read a page of experiments, oldest first."""
        principal = authorize(request.scope, Scope.SHADOW_READ)
        query = query_of(request.scope, *(each.name for each in _LIST.parameters))
        count = page_limit(query)
        found = await self._service.page(
            principal.tenant_id,
            state=_state_of(query),
            after=page_start(query, most=NUMBER_LIMIT),
            limit=count + 1,
        )
        page = found[:count]
        following = str(page[-1].experiment_no) if len(found) > count else None
        return answer(ExperimentsPage([experiment_view(each) for each in page], following), 200)

    async def read_experiment(self, request: AnyRequest) -> JsonAnswer:
        """Read an experiment as it stands."""
        principal = authorize(request.scope, Scope.SHADOW_READ)
        refuse_query(request.scope)
        experiment_id = experiment_id_of(request.scope["path_params"]["experiment_id"])
        experiment = await self._service.read(experiment_id, principal.tenant_id)
        return answer(experiment_view(experiment), 200)

    async def change_experiment(self, request: AnyRequest) -> JsonAnswer:
        """Start, pause or end an experiment, change its weights; in a draft, anything.

        A draft becomes running, running and paused alternate, and both end; nothing else.
        """
        principal = authorize(request.scope, Scope.SHADOW_WRITE)
        refuse_query(request.scope)
        experiment_id = experiment_id_of(request.scope["path_params"]["experiment_id"])
        body = decode_body(_CHANGE_DECODER, await read_body(request.receive))
        now = None
        if body.redefines:
            now = await self._service.read(experiment_id, principal.tenant_id)
        experiment = await self._service.change(
            experiment_id, principal.tenant_id, change_of(body, now)
        )
        return answer(experiment_view(experiment), 200)

    async def read_snapshot(self, request: AnyRequest) -> JsonAnswer:
        """Read what it takes to choose variants in one's own process.

        Send the `ETag` as `If-None-Match`: 304 says that nothing has changed.
        """
        principal = authorize(request.scope, Scope.SHADOW_ASSIGN)
        refuse_query(request.scope)
        snapshot = await self._service.snapshot(principal.tenant_id)
        tag = b'"%s"' % snapshot.version.encode()
        headers = ((b"etag", tag), (b"cache-control", b"no-cache"))
        if _is_known(request.scope["headers"], tag):
            return EmptyAnswer(NOT_MODIFIED, headers)
        return answer(snapshot_view(snapshot), 200, headers)


def _tenant_of(wanted: str | None, principal: Principal) -> TenantId:
    """Return whose an experiment shall be.

    Raises:
        RequestInvalid: the caller's key is bound to another tenant.
    """
    own = principal.tenant_id
    if own is not None and wanted not in {None, own}:
        raise invalid("tenant_id", f"this key is bound to tenant {own}")
    return own or TenantId(wanted or DEFAULT_TENANT)


def _state_of(query: Mapping[str, str]) -> ExperimentState | None:
    text = query.get("state")
    if text is None:
        return None
    if text not in set(ExperimentState):
        raise invalid("state", f"must be one of {', '.join(ExperimentState)}")
    return ExperimentState(text)


def _is_known(headers: Iterable[tuple[bytes, bytes]], tag: bytes) -> bool:
    """Whether the caller has what the tag names (RFC 9110, section 13.1.2)."""
    sent = b",".join(value for name, value in headers if name == b"if-none-match")
    known = {each.strip().removeprefix(b"W/") for each in sent.split(b",")}
    return tag in known or b"*" in known


EXAMPLE: dict[str, object] = {
    "experiment_id": "checkout",
    "variants": [{"name": "control"}, {"name": "new"}],
    "metrics": [{"name": "purchase", "kind": "binary"}],
    "units": 2_000,
    "state": "running",
}
_WRITING = (
    RequestInvalid,
    errors.DefinitionInvalid,
    errors.ProfileUnknown,
    errors.StateRefused,
    errors.NamespaceTaken,
    errors.ExperimentChanged,
)
_CREATE = RouteFacts(
    summary="Create an experiment",
    tag="experiments",
    scope=Scope.SHADOW_WRITE,
    body=Body(struct=ExperimentBody, example=EXAMPLE),
    answers={
        201: Answer(description="made", view=ExperimentView, next_steps=OF_EXPERIMENT),
        200: Answer(
            description="it was there, defined alike", view=ExperimentView,
            next_steps=OF_EXPERIMENT,
        ),
    },
    problems=(*_WRITING, errors.ExperimentTaken),
)  # fmt: skip
_LIST = RouteFacts(
    summary="List experiments",
    tag="experiments",
    scope=Scope.SHADOW_READ,
    parameters=(
        Parameter(
            name="state",
            param_in="query",
            required=False,
            description="of these alone; left out: of all",
            schema=Schema(type=OpenAPIType.STRING, enum=list(ExperimentState)),
        ),
        AFTER,
        LIMIT,
    ),
    answers={200: Answer(description="a page, oldest first", view=ExperimentsPage)},
    problems=(RequestInvalid,),
)
_READ = RouteFacts(
    summary="Read an experiment",
    tag="experiments",
    scope=Scope.SHADOW_READ,
    parameters=(EXPERIMENT_ID,),
    answers={
        200: Answer(description="the experiment", view=ExperimentView, next_steps=OF_EXPERIMENT)
    },
    problems=(RequestInvalid, errors.ExperimentNotFound),
)
_CHANGE = RouteFacts(
    summary="Change an experiment",
    tag="experiments",
    scope=Scope.SHADOW_WRITE,
    parameters=(EXPERIMENT_ID,),
    body=Body(struct=ChangeBody, example={"weights": {"control": 0.4, "new": 0.6}}),
    answers={
        200: Answer(
            description="the experiment, changed", view=ExperimentView, next_steps=OF_EXPERIMENT
        )
    },
    problems=(
        *_WRITING,
        errors.ExperimentNotFound,
        errors.ExperimentNotDraft,
        errors.ExperimentNotRunning,
        errors.VariantUnknown,
    ),
)
_SNAPSHOT = RouteFacts(
    summary="Read the snapshot that clients choose by",
    tag="units",
    scope=Scope.SHADOW_ASSIGN,
    parameters=(
        Parameter(
            name="If-None-Match",
            param_in="header",
            required=False,
            description="the `ETag` of the last answer",
            schema=Schema(type=OpenAPIType.STRING),
        ),
    ),
    answers={
        200: Answer(
            description="the snapshot",
            view=SnapshotView,
            headers={
                "ETag": {"description": "names this state", "schema": {"type": "string"}},
            },
        ),
        NOT_MODIFIED: Answer(description="nothing has changed", is_empty=True),
    },
    problems=(RequestInvalid,),
)
