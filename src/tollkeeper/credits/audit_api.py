"""The audit over HTTP: its routes, and what the OpenAPI document says of them.

Which error is which problem stands with the ledger's (`api.py`).
"""

from litestar import get
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.spec import Parameter, Schema
from litestar.openapi.spec.enums import OpenAPIType

from tollkeeper.credits import errors, requests
from tollkeeper.credits.api import AnyRequest, answer, page_limit, whole_number
from tollkeeper.credits.audit_messages import CheckpointPage, LeafPage, LinkPage, ProofView
from tollkeeper.credits.auditor import Auditor
from tollkeeper.credits.route_facts import ACCOUNT_ID, AFTER, EXAMPLE_ID, LIMIT
from tollkeeper.kernel.amounts import MAX_AMOUNT_MINOR
from tollkeeper.kernel.principal import Scope
from tollkeeper.web.answer import JsonAnswer
from tollkeeper.web.auth import authorize
from tollkeeper.web.openapi import Answer, RouteFacts, documented
from tollkeeper.web.problem import ProblemTable
from tollkeeper.web.query import query_of, refuse_query


class AuditApi:
    """The audit's routes around its service."""

    def __init__(self, auditor: Auditor, *, problems: ProblemTable) -> None:
        self._auditor = auditor
        self._problems = problems

    def routes(self) -> list[HTTPRouteHandler]:
        """Return the route handlers."""

        def route(path: str, facts: RouteFacts) -> get:
            return get(path, operation_class=documented(facts, self._problems))

        return [
            route("/v1/audit/checkpoints", _CHECKPOINTS)(self.read_checkpoints),
            route("/v1/audit/checkpoints/{number:str}/leaves", _LEAVES)(self.read_leaves),
            route("/v1/audit/proofs/{transaction_id:str}", _PROOF)(self.prove),
            route("/v1/accounts/{account_id:str}/links", _LINKS)(self.read_links),
        ]

    async def read_checkpoints(self, request: AnyRequest) -> JsonAnswer:
        """Read a page of signed checkpoints, oldest first."""
        authorize(request.scope, Scope.CREDITS_READ)
        after, limit = _page_of(request)
        return answer(await self._auditor.checkpoints(after=after, limit=limit), 200)

    async def read_leaves(self, request: AnyRequest) -> JsonAnswer:
        """Read a page of a checkpoint's leaves, each beside what the ledger says today.

        A key that is bound to a tenant gets other tenants' leaves as hashes: enough for the root.
        """
        principal = authorize(request.scope, Scope.CREDITS_READ)
        start, limit = _page_of(request)
        number = whole_number("number", request.scope["path_params"]["number"], 1, MAX_AMOUNT_MINOR)
        found = await self._auditor.leaves(number, principal.tenant_id, after=start, limit=limit)
        return answer(found, 200)

    async def prove(self, request: AnyRequest) -> JsonAnswer:
        """Prove that a transaction is under a signed checkpoint, for checking offline."""
        principal = authorize(request.scope, Scope.CREDITS_READ)
        refuse_query(request.scope)
        transaction_id = requests.identifier(
            "transaction_id", request.scope["path_params"]["transaction_id"]
        )
        return answer(await self._auditor.prove(transaction_id, principal.tenant_id), 200)

    async def read_links(self, request: AnyRequest) -> JsonAnswer:
        """Read what is hashed of an account's transactions, to recompute its chain.

        A hash is the SHA-256 of the first byte of `hashed`, the hash before it, and the rest.
        """
        principal = authorize(request.scope, Scope.CREDITS_READ)
        after, limit = _page_of(request)
        account_id = requests.account_id_of(request.scope["path_params"]["account_id"])
        found = await self._auditor.links(account_id, principal.tenant_id, after=after, limit=limit)
        return answer(found, 200)


def _page_of(request: AnyRequest) -> tuple[int, int]:
    """Return `after` and `limit` of a request for a page."""
    query = query_of(request.scope, "after", "limit")
    after = whole_number("after", query.get("after", "0"), 0, MAX_AMOUNT_MINOR)
    return after, page_limit(query)


_NUMBER = Parameter(
    name="number",
    param_in="path",
    required=True,
    description="number of the checkpoint",
    schema=Schema(type=OpenAPIType.INTEGER, minimum=1, maximum=MAX_AMOUNT_MINOR),
    example=1,
)
_TRANSACTION_ID = Parameter(
    name="transaction_id",
    param_in="path",
    required=True,
    description="a UUIDv7",
    schema=Schema(type=OpenAPIType.STRING, pattern=requests.UUID7_PATTERN),
    example=EXAMPLE_ID,
)


_CHECKPOINTS = RouteFacts(
    summary="Read the signed checkpoints",
    tag="audit",
    scope=Scope.CREDITS_READ,
    parameters=(AFTER, LIMIT),
    answers={200: Answer(description="a page, oldest first", view=CheckpointPage)},
    problems=(errors.InvalidRequest,),
)
_LEAVES = RouteFacts(
    summary="Read the leaves of a checkpoint",
    tag="audit",
    scope=Scope.CREDITS_READ,
    parameters=(_NUMBER, AFTER, LIMIT),
    answers={200: Answer(description="a page, in the order of the tree", view=LeafPage)},
    problems=(errors.InvalidRequest, errors.CheckpointNotFound),
)
_PROOF = RouteFacts(
    summary="Prove a transaction",
    tag="audit",
    scope=Scope.CREDITS_READ,
    parameters=(_TRANSACTION_ID,),
    answers={200: Answer(description="the proof", view=ProofView)},
    problems=(errors.InvalidRequest, errors.TransactionNotFound, errors.NotCheckpointed),
)
_LINKS = RouteFacts(
    summary="Read the links of an account's chain",
    tag="audit",
    scope=Scope.CREDITS_READ,
    parameters=(ACCOUNT_ID, AFTER, LIMIT),
    answers={200: Answer(description="a page, oldest first", view=LinkPage)},
    problems=(errors.InvalidRequest, errors.AccountNotFound),
)
