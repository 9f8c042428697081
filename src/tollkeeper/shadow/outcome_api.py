"""Assignments and outcomes over HTTP: the busiest routes, one item or a list of them.

Both are safe to repeat without an `Idempotency-Key`: a unit keeps the variant it got first, and an
outcome is counted once by its `outcome_id`. A body with a fault in any item is refused whole,
before anything is done; what an experiment refuses is said of each item.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec
from litestar import Request, post
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler
from litestar.types import Receive
from litestar.types import Scope as HttpScope

from tollkeeper.kernel.clock import Clock
from tollkeeper.kernel.errors import TollkeeperError
from tollkeeper.kernel.principal import Scope
from tollkeeper.shadow import errors
from tollkeeper.shadow.model import Recorded
from tollkeeper.shadow.outcome_messages import (
    AssignmentAnswer,
    AssignmentBody,
    AssignmentResult,
    AssignmentView,
    OutcomeAnswer,
    OutcomeBody,
    OutcomeResult,
    OutcomeView,
    assignment_view,
    invalid,
    outcome_view,
    outcomes_of,
    units_of,
)
from tollkeeper.shadow.requests import ID_RULE, Assigned, is_path_id
from tollkeeper.shadow.route_facts import EXPERIMENT_ID
from tollkeeper.shadow.service import ShadowService
from tollkeeper.web.answer import JsonAnswer
from tollkeeper.web.auth import authorize
from tollkeeper.web.body import decode_body, read_body
from tollkeeper.web.errors import RequestInvalid
from tollkeeper.web.express import Answering
from tollkeeper.web.openapi import Answer, Body, DocumentedOperation, RouteFacts, documented
from tollkeeper.web.problem import ProblemTable, problem_of
from tollkeeper.web.query import refuse_query

OUTCOMES_PATH = "/v1/outcomes"

AnyRequest = Request[None, None, State]
_Said = TypeVar("_Said")
_Result = TypeVar("_Result")

_ENCODER = msgspec.json.Encoder()


class OutcomeApi:
    """The routes of assignments and outcomes around their service."""

    def __init__(self, service: ShadowService, *, clock: Clock, problems: ProblemTable) -> None:
        self._service = service
        self._clock = clock
        self._problems = problems
        self._assignment_decoder = msgspec.json.Decoder(AssignmentBody)
        self._outcome_decoder = msgspec.json.Decoder(OutcomeBody)

    def routes(self) -> list[HTTPRouteHandler]:
        """Return the route handlers."""
        assignments = "/v1/experiments/{experiment_id:str}/assignments"

        def said(facts: RouteFacts) -> type[DocumentedOperation]:
            return documented(facts, self._problems)

        return [
            post(assignments, operation_class=said(_ASSIGN))(self.assign),
            post(OUTCOMES_PATH, operation_class=said(_RECORD))(self.record),
        ]

    def endings(self) -> dict[str, Answering]:
        """Return the busiest routes by how their path ends, for `web.express`."""
        return {"assignments": self.answer_assignment}

    def paths(self) -> dict[str, Answering]:
        """Return the busiest routes by their whole path, for `web.express`."""
        return {OUTCOMES_PATH: self.answer_outcome}

    async def assign(self, request: AnyRequest) -> JsonAnswer:
        """Assign a unit to a variant, or up to 10,000 units.

        A unit keeps its variant for ever: asking again answers the same, with 200. Units that the
        experiment leaves alone get the control, and are not counted.
        """
        experiment_id = request.scope["path_params"]["experiment_id"]
        return await self.answer_assignment(request.scope, request.receive, experiment_id)

    async def record(self, request: AnyRequest) -> JsonAnswer:
        """Record an outcome of a unit, or up to 10,000 outcomes of any experiments.

        Each is counted once, however often it is sent, and may arrive before its unit is assigned.
        """
        return await self.answer_outcome(request.scope, request.receive, "")

    async def answer_assignment(
        self, scope: HttpScope, receive: Receive, experiment: str
    ) -> JsonAnswer:
        """Answer an assignment."""
        principal = authorize(scope, Scope.SHADOW_ASSIGN)
        if scope["query_string"]:
            refuse_query(scope)
        experiment_id = experiment_id_of(experiment)
        body = decode_body(self._assignment_decoder, await read_body(receive))
        units = units_of(body, self._clock.now())
        results = await self._service.assign(experiment_id, principal.tenant_id, units)
        if body.units is None:
            (result,) = results
            assigned = _or_raise(result, Assigned)
            return answer(assignment_view(assigned), 201 if assigned.is_new else 200)
        return answer(AssignmentAnswer(results=self._each(results, _assignment_result)), 200)

    async def answer_outcome(self, scope: HttpScope, receive: Receive, _name: str) -> JsonAnswer:
        """Answer an outcome."""
        principal = authorize(scope, Scope.SHADOW_ASSIGN)
        if scope["query_string"]:
            refuse_query(scope)
        body = decode_body(self._outcome_decoder, await read_body(receive))
        outcomes = outcomes_of(body, self._clock.now())
        results = await self._service.record(outcomes, principal.tenant_id)
        if body.outcomes is None:
            (result,) = results
            recorded = _or_raise(result, Recorded)
            return answer(outcome_view(recorded), 201 if recorded.is_new else 200)
        return answer(OutcomeAnswer(results=self._each(results, _outcome_result)), 200)

    def _each(
        self,
        results: Sequence[_Said | TollkeeperError],
        shown: Callable[[_Said | None, int, dict[str, object] | None], _Result],
    ) -> list[_Result]:
        found = []
        for result in results:
            if isinstance(result, TollkeeperError):
                problem = problem_of(result, self._problems)
                found.append(shown(None, problem.status, problem.document()))
            else:
                found.append(shown(result, 0, None))
        return found


def experiment_id_of(text: str) -> str:
    """Return the experiment's id in a URL's path.

    Raises:
        RequestInvalid: it is not an id.
    """
    if not is_path_id(text):
        raise invalid("experiment_id", f"must be {ID_RULE}")
    return text


def answer(
    view: msgspec.Struct, status: int, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> JsonAnswer:
    """Return a value as an answer."""
    return JsonAnswer(_ENCODER.encode(view), status, headers)


def _or_raise(result: _Said | TollkeeperError, kind: type[_Said]) -> _Said:
    if isinstance(result, TollkeeperError):
        raise result
    assert isinstance(result, kind)
    return result


def _assignment_result(
    assigned: Assigned | None, status: int, problem: dict[str, object] | None
) -> AssignmentResult:
    if assigned is None:
        return AssignmentResult(status=status, problem=problem)
    done = 201 if assigned.is_new else 200
    return AssignmentResult(status=done, assignment=assignment_view(assigned))


def _outcome_result(
    recorded: Recorded | None, status: int, problem: dict[str, object] | None
) -> OutcomeResult:
    if recorded is None:
        return OutcomeResult(status=status, problem=problem)
    return OutcomeResult(status=201 if recorded.is_new else 200, outcome=outcome_view(recorded))


_BUSY = (errors.QueueFull, errors.Draining, errors.ShadowUnavailable)
_ASSIGN = RouteFacts(
    summary="Assign units to variants",
    tag="units",
    scope=Scope.SHADOW_ASSIGN,
    parameters=(EXPERIMENT_ID,),
    body=Body(struct=AssignmentBody, example={"unit_id": "user-1"}),
    answers={
        201: Answer(description="assigned now", view=AssignmentView),
        200: Answer(
            description="assigned before, or left alone; of a list: each unit's own answer",
            view=AssignmentAnswer,
        ),
    },
    problems=(
        RequestInvalid,
        errors.ExperimentNotFound,
        errors.ExperimentNotRunning,
        errors.EpochUnknown,
        *_BUSY,
    ),
)
_RECORD = RouteFacts(
    summary="Record outcomes of units",
    tag="units",
    scope=Scope.SHADOW_ASSIGN,
    body=Body(
        struct=OutcomeBody,
        example={"experiment_id": "checkout", "unit_id": "user-1", "outcome_id": "order-2041"},
    ),
    answers={
        201: Answer(description="recorded now", view=OutcomeView),
        200: Answer(
            description="recorded before; of a list: each outcome's own answer",
            view=OutcomeAnswer,
        ),
    },
    problems=(
        RequestInvalid,
        errors.ExperimentNotFound,
        errors.ExperimentNotRunning,
        errors.MetricUnknown,
        errors.ValueInvalid,
        errors.UnitNotExposed,
        errors.OutcomeReused,
        *_BUSY,
    ),
)
