"""Alerts over HTTP: thresholds of an account, what fired, acknowledging.

None of it needs an `Idempotency-Key`: thresholds are replaced as a whole, and an alert is
acknowledged once. Thresholds take the scope of money writes: who may spend the credits may say when
to be told that they run low, and could do worse to them than be silent.
"""

from collections.abc import Mapping
from uuid import UUID

import msgspec
from litestar import get, post, put
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.spec import Parameter, Schema
from litestar.openapi.spec.enums import OpenAPIType

from tollkeeper.credits import errors, requests
from tollkeeper.credits.alert_messages import (
    AccountAlertsView,
    AcknowledgementBody,
    AlertsBody,
    AlertsPage,
    AlertView,
    account_alerts_view,
    alert_view,
    thresholds_of,
)
from tollkeeper.credits.alert_model import AlertId, AlertState
from tollkeeper.credits.alert_service import AlertFilter, AlertService
from tollkeeper.credits.api import AnyRequest, answer, page_limit
from tollkeeper.credits.batch import check_tenant
from tollkeeper.credits.route_facts import ACCOUNT_ID, EXAMPLE_ID, LIMIT
from tollkeeper.kernel.ids import TenantId
from tollkeeper.kernel.principal import Principal, Scope
from tollkeeper.web.answer import JsonAnswer
from tollkeeper.web.auth import authorize
from tollkeeper.web.body import decode_body, read_body
from tollkeeper.web.openapi import (
    Answer,
    Body,
    DocumentedOperation,
    NextStep,
    RouteFacts,
    documented,
)
from tollkeeper.web.problem import ProblemTable
from tollkeeper.web.query import query_of, refuse_query

ALL_STATES = "all"
_FIRST_ID = UUID(int=0)
_STATES = (*(state.value for state in AlertState), ALL_STATES)


class AlertsApi:
    """The routes of alerts around their service."""

    def __init__(self, service: AlertService, *, problems: ProblemTable) -> None:
        self._service = service
        self._problems = problems

    def routes(self) -> list[HTTPRouteHandler]:
        """Return the route handlers."""
        account, alert = "/v1/accounts/{account_id:str}/alerts", "/v1/alerts/{alert_id:str}"

        def said(facts: RouteFacts) -> type[DocumentedOperation]:
            return documented(facts, self._problems)

        return [
            put(account, operation_class=said(_SET))(self.set_alerts),
            get(account, operation_class=said(_SHOW))(self.read_alerts),
            get("/v1/alerts", operation_class=said(_LIST))(self.list_alerts),
            get(alert, operation_class=said(_READ))(self.read_alert),
            post(f"{alert}/acknowledgement", operation_class=said(_ACKNOWLEDGE))(
                self.acknowledge_alert
            ),
        ]

    async def set_alerts(self, request: AnyRequest) -> JsonAnswer:
        """Say at which credits available an account's alerts fire, in place of what was said.

        A threshold that was there keeps its state. One that is new and crossed already fires at
        once. An empty list takes all away; their alerts end.
        """
        principal = authorize(request.scope, Scope.CREDITS_WRITE)
        refuse_query(request.scope)
        account_id = requests.account_id_of(request.scope["path_params"]["account_id"])
        body = decode_body(_ALERTS_DECODER, await read_body(request.receive))
        account, shown = await self._service.set_thresholds(
            account_id, thresholds_of(body), by=principal
        )
        return answer(account_alerts_view(account, shown), 200)

    async def read_alerts(self, request: AnyRequest) -> JsonAnswer:
        """Read the thresholds of an account and how each stands."""
        principal = authorize(request.scope, Scope.CREDITS_READ)
        refuse_query(request.scope)
        account_id = requests.account_id_of(request.scope["path_params"]["account_id"])
        account, shown = await self._service.thresholds(account_id, principal.tenant_id)
        return answer(account_alerts_view(account, shown), 200)

    async def list_alerts(self, request: AnyRequest) -> JsonAnswer:
        """Read a page of the alerts that fired, oldest first.

        An alert is `open` while it stands and nobody has acknowledged it, `acknowledged` while it
        stands and somebody has, and `rearmed` afterwards.
        """
        principal = authorize(request.scope, Scope.CREDITS_READ)
        query = query_of(request.scope, *(each.name for each in _LIST.parameters))
        wanted, count = _filter_of(query, principal), page_limit(query)
        after = requests.identifier("after", query["after"]) if "after" in query else _FIRST_ID
        found = await self._service.alerts(wanted, after=after, limit=count + 1)
        page = found[:count]
        following = str(page[-1].alert_id) if len(found) > count else None
        return answer(AlertsPage([alert_view(each) for each in page], following), 200)

    async def read_alert(self, request: AnyRequest) -> JsonAnswer:
        """Read an alert as it stands."""
        principal = authorize(request.scope, Scope.CREDITS_READ)
        refuse_query(request.scope)
        found = await self._service.alert(_alert_id(request), principal.tenant_id)
        return answer(alert_view(found), 200)

    async def acknowledge_alert(self, request: AnyRequest) -> JsonAnswer:
        """Say that you know of an alert; it is not open any more.

        The first word stands: acknowledging again changes nothing and answers 200.
        """
        principal = authorize(request.scope, Scope.CREDITS_WRITE)
        refuse_query(request.scope)
        alert_id = _alert_id(request)
        body = decode_body(_ACKNOWLEDGEMENT_DECODER, await read_body(request.receive) or b"{}")
        note = None if body.note is None else requests.kept_text("note", body.note)
        alert, is_new = await self._service.acknowledge(alert_id, note, by=principal)
        return answer(alert_view(alert), 201 if is_new else 200)


def _alert_id(request: AnyRequest) -> AlertId:
    return AlertId(requests.identifier("alert_id", request.scope["path_params"]["alert_id"]))


def _filter_of(query: Mapping[str, str], principal: Principal) -> AlertFilter:
    state, tenant = query.get("state", AlertState.OPEN.value), query.get("tenant_id")
    if state not in _STATES:
        raise requests.invalid("state", f"must be one of {', '.join(_STATES)}")
    if tenant is not None:
        requests.tenant_id_of(tenant)
        check_tenant(principal, tenant)
    account = query.get("account_id")
    return AlertFilter(
        state=None if state == ALL_STATES else AlertState(state),
        account_id=None if account is None else requests.account_id_of(account),
        tenant_id=principal.tenant_id if tenant is None else TenantId(tenant),
    )


_ALERTS_DECODER = msgspec.json.Decoder(AlertsBody)
_ACKNOWLEDGEMENT_DECODER = msgspec.json.Decoder(AcknowledgementBody)
_ALERT_ID = Parameter(
    name="alert_id",
    param_in="path",
    required=True,
    description="id of the alert: a UUIDv7",
    schema=Schema(type=OpenAPIType.STRING, pattern=requests.UUID7_PATTERN),
    example=EXAMPLE_ID,
)


def _optional(name: str, description: str, schema: Schema) -> Parameter:
    return Parameter(
        name=name, param_in="query", required=False, description=description, schema=schema
    )


_ID = Schema(type=OpenAPIType.STRING, pattern=requests.ID_PATTERN)
_OF_ACCOUNT = tuple(
    NextStep(each, "account_id") for each in ("read_alerts", "set_alerts", "read_account")
)
_OF_ALERT = (NextStep("read_alert", "alert_id"), NextStep("acknowledge_alert", "alert_id"))
_SET = RouteFacts(
    summary="Set an account's alerts",
    tag="alerts",
    scope=Scope.CREDITS_WRITE,
    parameters=(ACCOUNT_ID,),
    body=Body(
        struct=AlertsBody,
        example={"alerts": [{"threshold": 1_000}, {"threshold": 100, "hysteresis": 50}]},
    ),
    answers={
        200: Answer(
            description="the thresholds as they are now", view=AccountAlertsView,
            next_steps=_OF_ACCOUNT,
        )
    },
    problems=(errors.InvalidRequest, errors.AccountNotFound),
)  # fmt: skip
_SHOW = RouteFacts(
    summary="Read an account's alerts",
    tag="alerts",
    scope=Scope.CREDITS_READ,
    parameters=(ACCOUNT_ID,),
    answers={
        200: Answer(description="its thresholds", view=AccountAlertsView, next_steps=_OF_ACCOUNT)
    },
    problems=(errors.InvalidRequest, errors.AccountNotFound),
)
_LIST = RouteFacts(
    summary="List the alerts that fired",
    tag="alerts",
    scope=Scope.CREDITS_READ,
    parameters=(
        _optional(
            "state", "which of them",
            Schema(type=OpenAPIType.STRING, enum=list(_STATES), default=AlertState.OPEN.value),
        ),
        _optional("account_id", "of this account alone", _ID),
        _optional("tenant_id", "of this tenant alone; a tenant's key sees no other's", _ID),
        _optional(
            "after", "`next` of the page before; left out: from the start",
            Schema(type=OpenAPIType.STRING, pattern=requests.UUID7_PATTERN),
        ),
        LIMIT,
    ),
    answers={200: Answer(description="a page, oldest first", view=AlertsPage)},
    problems=(errors.InvalidRequest,),
)  # fmt: skip
_READ = RouteFacts(
    summary="Read an alert",
    tag="alerts",
    scope=Scope.CREDITS_READ,
    parameters=(_ALERT_ID,),
    answers={200: Answer(description="the alert", view=AlertView, next_steps=_OF_ALERT)},
    problems=(errors.InvalidRequest, errors.AlertNotFound),
)
_ACKNOWLEDGE = RouteFacts(
    summary="Acknowledge an alert",
    tag="alerts",
    scope=Scope.CREDITS_WRITE,
    parameters=(_ALERT_ID,),
    body=Body(struct=AcknowledgementBody, example={"note": "top-up ordered"}, is_required=False),
    answers={
        201: Answer(description="the alert, acknowledged", view=AlertView, next_steps=_OF_ALERT),
        200: Answer(description="it was before, and is as it was", view=AlertView),
    },
    problems=(errors.InvalidRequest, errors.AlertNotFound),
)
