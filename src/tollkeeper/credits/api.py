"""The ledger over HTTP: routes, what each can answer, and which error is which problem.

Handlers take the raw request and answer bytes: with Litestar's own decoding and encoding a request
costs 24.8 µs in the framework, so 16.3 µs (measured in process). Bodies and answers are the structs
of `messages.py`; what stands in the OpenAPI document is said in the `RouteFacts` here.
"""

from collections.abc import Mapping

import msgspec
from litestar import Request, get, post
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler
from litestar.types import Receive
from litestar.types import Scope as HttpScope

from tollkeeper.credits import errors, requests
from tollkeeper.credits.batch import BatchReader, check_tenant
from tollkeeper.credits.engine import Result
from tollkeeper.credits.messages import (
    AccountView,
    BatchAnswer,
    BatchBody,
    BatchResult,
    ConsumptionBody,
    HistoryPage,
    OpenAccountBody,
    TopupBody,
    TransactionView,
    VerificationView,
    VerifyBody,
    account_view,
    answer_view,
    terms_view,
)
from tollkeeper.credits.model import Kind, Opened, Posted
from tollkeeper.credits.route_facts import (
    ACCOUNT_ID,
    AFTER,
    LIMIT,
    OF_ACCOUNT,
    OF_TAKING,
    OF_TRANSACTION,
    PAGE_DEFAULT,
    PAGE_LIMIT,
    written,
)
from tollkeeper.credits.service import CreditsService
from tollkeeper.kernel.amounts import MAX_AMOUNT_MINOR
from tollkeeper.kernel.ids import EntropySource
from tollkeeper.kernel.principal import Scope
from tollkeeper.web.answer import JsonAnswer
from tollkeeper.web.auth import authorize
from tollkeeper.web.body import decode_body, read_body
from tollkeeper.web.express import Answering
from tollkeeper.web.idempotency import idempotency_key
from tollkeeper.web.openapi import (
    Answer,
    Body,
    DocumentedOperation,
    NextStep,
    RouteFacts,
    documented,
)
from tollkeeper.web.problem import URN, ProblemKind, ProblemTable, problem_of
from tollkeeper.web.query import query_of, refuse_query

PROBLEMS: ProblemTable = {
    errors.AccountNotFound: ProblemKind(404, URN + "account-not-found", "Account not found"),
    errors.AccountTaken: ProblemKind(
        409, URN + "account-taken", "The account belongs to another tenant"
    ),
    errors.TenantNotFound: ProblemKind(404, URN + "tenant-not-found", "Tenant not found"),
    errors.InsufficientCredits: ProblemKind(
        402, URN + "insufficient-credits", "Insufficient credits"
    ),
    errors.BalanceTooLarge: ProblemKind(
        422, URN + "balance-too-large", "The balance would be too large"
    ),
    errors.HoldNotFound: ProblemKind(404, URN + "hold-not-found", "Hold not found"),
    errors.HoldClosed: ProblemKind(409, URN + "hold-closed", "The hold is settled or expired"),
    errors.CaptureTooLarge: ProblemKind(
        409, URN + "capture-too-large", "More than the hold and its allowance"
    ),
    errors.TransactionNotFound: ProblemKind(
        404, URN + "transaction-not-found", "Transaction not found"
    ),
    errors.NotRefundable: ProblemKind(
        409, URN + "not-refundable", "The transaction cannot be refunded"
    ),
    errors.RefundTooLarge: ProblemKind(
        409, URN + "refund-too-large", "More than was taken and not given back"
    ),
    errors.AccountFrozen: ProblemKind(423, URN + "account-frozen", "The account is frozen"),
    errors.NotFrozen: ProblemKind(409, URN + "not-frozen", "The account is not frozen"),
    errors.UnfreezeUnsafe: ProblemKind(
        409, URN + "unfreeze-unsafe", "The account cannot stand where its chain ends"
    ),
    errors.TransactionVanished: ProblemKind(
        409, URN + "transaction-vanished", "The transaction of this key is gone"
    ),
    errors.KeyReused: ProblemKind(
        422, URN + "idempotency-key-reused", "Idempotency-Key was used for another request"
    ),
    errors.KeyExpired: ProblemKind(
        422, URN + "idempotency-key-expired", "Idempotency-Key is outside its lifetime"
    ),
    errors.AlertNotFound: ProblemKind(404, URN + "alert-not-found", "Alert not found"),
    errors.InvalidRequest: ProblemKind(400, URN + "invalid-request", "Invalid request"),
    errors.QueueFull: ProblemKind(503, URN + "overloaded", "Too many operations wait"),
    errors.Draining: ProblemKind(503, URN + "draining", "The service is shutting down"),
    errors.LedgerUnavailable: ProblemKind(
        503, URN + "ledger-unavailable", "The ledger cannot answer now"
    ),
    errors.VerificationRunning: ProblemKind(
        429, URN + "verification-running", "A verification is running"
    ),
    errors.ExportsRunning: ProblemKind(429, URN + "exports-running", "Other exports are running"),
    errors.CheckpointNotFound: ProblemKind(404, URN + "checkpoint-not-found", "No such checkpoint"),
    errors.NotCheckpointed: ProblemKind(
        409, URN + "not-checkpointed", "No checkpoint covers the transaction yet"
    ),
}


_ENCODER = msgspec.json.Encoder()
_REPLAYED = ((b"idempotent-replayed", b"true"),)
AnyRequest = Request[None, None, State]


class CreditsApi:
    """The ledger's routes around its service."""

    def __init__(
        self, service: CreditsService, *, entropy: EntropySource, problems: ProblemTable
    ) -> None:
        self._service = service
        self._entropy = entropy
        self._batch = BatchReader(entropy)
        self._problems = problems
        self._open_decoder = msgspec.json.Decoder(OpenAccountBody)
        self._topup_decoder = msgspec.json.Decoder(TopupBody)
        self._consumption_decoder = msgspec.json.Decoder(ConsumptionBody)
        self._batch_decoder = msgspec.json.Decoder(BatchBody)
        self._verify_decoder = msgspec.json.Decoder(VerifyBody)

    def routes(self) -> list[HTTPRouteHandler]:
        """Return the route handlers."""
        account, said = "/v1/accounts/{account_id:str}", self._said
        return [
            post("/v1/accounts", operation_class=said(_OPEN))(self.open_account),
            get(account, operation_class=said(_READ))(self.read_account),
            post(f"{account}/topups", operation_class=said(_TOP_UP))(self.top_up),
            post(f"{account}/consumptions", operation_class=said(_CONSUME))(self.consume),
            get(f"{account}/transactions", operation_class=said(_HISTORY))(self.read_history),
            post("/v1/batch", operation_class=said(_BATCH))(self.batch),
            post("/v1/audit/verify", operation_class=said(_VERIFY))(self.verify),
        ]

    async def open_account(self, request: AnyRequest) -> JsonAnswer:
        """Open an account for a tenant.

        Opening it again for the same tenant changes nothing and answers 200; for another, 409.
        """
        principal = authorize(request.scope, Scope.CREDITS_WRITE)
        refuse_query(request.scope)
        body = decode_body(self._open_decoder, await read_body(request.receive))
        check_tenant(principal, body.tenant_id)
        opened = await self._service.execute_one(
            requests.open_account(body.account_id, body.tenant_id)
        )
        assert isinstance(opened, Opened)
        return answer(account_view(opened.account), 201 if opened.created else 200)

    async def read_account(self, request: AnyRequest) -> JsonAnswer:
        """Read an account as it stands."""
        principal = authorize(request.scope, Scope.CREDITS_READ)
        refuse_query(request.scope)
        account_id = requests.account_id_of(request.scope["path_params"]["account_id"])
        account = await self._service.account(account_id, principal.tenant_id)
        return answer(account_view(account), 200)

    async def top_up(self, request: AnyRequest) -> JsonAnswer:
        """Add credits to an account.

        The `Idempotency-Key` makes a retry safe: the same key and request again change nothing
        and answer as the first time.
        """
        return await self.move_topup(
            request.scope, request.receive, request.scope["path_params"]["account_id"]
        )

    async def consume(self, request: AnyRequest) -> JsonAnswer:
        """Spend credits of an account, if it has them; a balance never goes below zero.

        A refusal changes nothing and keeps no key: the same key may be tried again.
        """
        return await self.move_consumption(
            request.scope, request.receive, request.scope["path_params"]["account_id"]
        )

    async def read_history(self, request: AnyRequest) -> JsonAnswer:
        """Read a page of an account's transactions, oldest first."""
        principal = authorize(request.scope, Scope.CREDITS_READ)
        query = query_of(request.scope, AFTER.name, LIMIT.name)
        account_id = requests.account_id_of(request.scope["path_params"]["account_id"])
        behind = whole_number("after", query.get("after", "0"), 0, MAX_AMOUNT_MINOR)
        count = page_limit(query)
        found = await self._service.history(
            account_id, principal.tenant_id, after=behind, limit=count + 1
        )
        page = found[:count]
        following = str(page[-1].sequence) if len(found) > count else None
        return answer(HistoryPage([terms_view(t) for t in page], following), 200)

    async def batch(self, request: AnyRequest) -> JsonAnswer:
        """Decide up to 10,000 operations, in order.

        Each has its own result, so the answer is 200 also when some were refused. A body with a
        fault in any operation is refused whole, before anything is done.
        """
        principal = authorize(request.scope, Scope.CREDITS_WRITE)
        refuse_query(request.scope)
        body = decode_body(self._batch_decoder, await read_body(request.receive))
        operations = await self._batch.operations(body.operations, principal)
        results = await self._service.execute(operations)
        return answer(BatchAnswer([self._result(result) for result in results]), 200)

    async def verify(self, request: AnyRequest) -> JsonAnswer:
        """Check hash chain, balance, holds and refunds of one account, or of a slice of all.

        Without `account_id`, send `next` as `after` until it is null: that was the whole ledger.
        """
        principal = authorize(request.scope, Scope.CREDITS_READ)
        refuse_query(request.scope)
        raw = await read_body(request.receive)
        body = decode_body(self._verify_decoder, raw or b"{}")
        if body.account_id is not None and body.after is not None:
            raise requests.invalid("after", "continues a verification of all accounts, not of one")
        found = await self._service.verify(
            None if body.account_id is None else requests.account_id_of(body.account_id),
            principal.tenant_id,
            after=body.after,
        )
        return answer(found, 200)

    def express(self) -> dict[str, Answering]:
        """Return the busiest routes by how their path ends, for `web.express`."""
        return {"topups": self.move_topup, "consumptions": self.move_consumption}

    async def move_topup(self, scope: HttpScope, receive: Receive, account: str) -> JsonAnswer:
        """Answer a top-up."""
        return await self._move(scope, receive, account, Kind.TOPUP)

    async def move_consumption(
        self, scope: HttpScope, receive: Receive, account: str
    ) -> JsonAnswer:
        """Answer a consumption."""
        return await self._move(scope, receive, account, Kind.CONSUME)

    async def _move(
        self, scope: HttpScope, receive: Receive, account: str, kind: Kind
    ) -> JsonAnswer:
        principal = authorize(scope, Scope.CREDITS_WRITE)
        if scope["query_string"]:
            refuse_query(scope)
        key = idempotency_key(scope["headers"])
        account_id = requests.account_id_of(account)
        raw = await read_body(receive)
        body: TopupBody | ConsumptionBody
        if kind is Kind.TOPUP:
            body = decode_body(self._topup_decoder, raw)
        else:
            body = decode_body(self._consumption_decoder, raw)
        posted = await self._service.execute_one(
            requests.movement(
                kind=kind,
                account_id=account_id,
                amount=body.amount,
                key=key,
                entropy=self._entropy(),
                tenant_id=principal.tenant_id,
                description=body.description,
                metadata=body.metadata,
                up_to=isinstance(body, ConsumptionBody) and body.up_to,
                payment=body.payment if isinstance(body, TopupBody) else None,
            )
        )
        assert isinstance(posted, Posted)
        return posted_answer(posted)

    def _said(self, facts: RouteFacts) -> type[DocumentedOperation]:
        return documented(facts, self._problems)

    def _result(self, result: Result) -> BatchResult:
        if type(result) is Posted:
            return BatchResult(
                status=201,
                replayed=result.replayed,
                transaction=answer_view(result.transaction),
            )
        if type(result) is Opened:
            return BatchResult(
                status=201 if result.created else 200, account=account_view(result.account)
            )
        assert isinstance(result, errors.CreditsError | errors.OperationFailed)
        problem = problem_of(result, self._problems)
        return BatchResult(status=problem.status, problem=problem.document())


def page_limit(query: Mapping[str, str]) -> int:
    """Return how many rows a page shall have."""
    return whole_number("limit", query.get("limit", str(PAGE_DEFAULT)), 1, PAGE_LIMIT)


def posted_answer(posted: Posted) -> JsonAnswer:
    """Return what a money write answers, the first time and again."""
    return answer(answer_view(posted.transaction), 201, replayed_headers(posted))


def replayed_headers(posted: Posted) -> tuple[tuple[bytes, bytes], ...]:
    """Return what tells that an answer was given before."""
    return _REPLAYED if posted.replayed else ()


def whole_number(field: str, text: str, least: int, most: int) -> int:
    """Return the number that a part of a URL is.

    Raises:
        InvalidRequest: it is none, or outside the bounds.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and least <= int(text) <= most):
        raise requests.invalid(field, f"must be a whole number from {least} to {most}")
    return int(text)


def answer(
    view: msgspec.Struct,
    status: int,
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> JsonAnswer:
    """Return a value of `messages.py` as an answer."""
    return JsonAnswer(_ENCODER.encode(view), status, headers)


_OPEN = RouteFacts(
    summary="Open an account",
    tag="accounts",
    scope=Scope.CREDITS_WRITE,
    body=Body(struct=OpenAccountBody, example={"account_id": "acme-prod", "tenant_id": "acme"}),
    answers={
        201: Answer(description="opened", view=AccountView, next_steps=OF_ACCOUNT),
        200: Answer(
            description="it was open already, for the same tenant",
            view=AccountView,
            next_steps=OF_ACCOUNT,
        ),
    },
    problems=(errors.AccountTaken,),
)
_READ = RouteFacts(
    summary="Read an account",
    tag="accounts",
    scope=Scope.CREDITS_READ,
    parameters=(ACCOUNT_ID,),
    answers={200: Answer(description="the account", view=AccountView)},
    problems=(errors.InvalidRequest, errors.AccountNotFound),
)
_TOP_UP = written(
    "Top up",
    "purchase-1",
    Body(
        struct=TopupBody,
        example={
            "amount": 10_000,
            "description": "first purchase",
            "payment": {"method": "card", "reference": "charge-1"},
        },
    ),
    place=ACCOUNT_ID,
    view=TransactionView,
    problems=(errors.AccountNotFound, errors.BalanceTooLarge),
    next_steps=(*OF_TRANSACTION, NextStep("consume", "account_id"), NextStep("hold", "account_id")),
)
_CONSUME = written(
    "Consume",
    "usage-1",
    Body(struct=ConsumptionBody, example={"amount": 250, "metadata": {"model": "small"}}),
    place=ACCOUNT_ID,
    view=TransactionView,
    problems=(errors.AccountNotFound, errors.InsufficientCredits),
    next_steps=OF_TAKING,
)
_HISTORY = RouteFacts(
    summary="Read an account's transactions",
    tag="transactions",
    scope=Scope.CREDITS_READ,
    parameters=(ACCOUNT_ID, AFTER, LIMIT),
    answers={200: Answer(description="a page, oldest first", view=HistoryPage)},
    problems=(errors.InvalidRequest, errors.AccountNotFound),
)
_BATCH = RouteFacts(
    summary="Run a batch of operations",
    tag="transactions",
    scope=Scope.CREDITS_WRITE,
    body=Body(
        struct=BatchBody,
        example={
            "operations": [
                {"op": "open", "account_id": "acme-test", "tenant_id": "acme"},
                {"op": "topup", "account_id": "acme-test", "idempotency_key": "b1", "amount": 500},
                {"op": "consume", "account_id": "acme-test", "idempotency_key": "b2", "amount": 20},
            ]
        },
    ),
    answers={200: Answer(description="one result per operation, in order", view=BatchAnswer)},
)
_VERIFY = RouteFacts(
    summary="Verify the ledger",
    tag="audit",
    scope=Scope.CREDITS_READ,
    body=Body(struct=VerifyBody, example={"account_id": "acme-prod"}, is_required=False),
    answers={200: Answer(description="what was checked and found", view=VerificationView)},
    problems=(errors.AccountNotFound, errors.VerificationRunning),
)
