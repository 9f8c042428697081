"""The ledger over HTTP: routes, what each can answer, and which error is which problem.

Handlers take the raw request and answer bytes: with Litestar's own decoding and encoding a request
costs 24.8 µs in the framework, so 16.3 µs (measured in process). Bodies and answers are the structs
of `messages.py`; what stands in the OpenAPI document is said in the `RouteFacts` here.
"""

import msgspec
from litestar import Request, get, post
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.spec import Parameter, Schema
from litestar.openapi.spec.enums import OpenAPIType
from litestar.types import Receive
from litestar.types import Scope as HttpScope

from tollkeeper.credits import errors, requests
from tollkeeper.credits.engine import Result
from tollkeeper.credits.messages import (
    ID_RULE,
    AccountView,
    BatchAnswer,
    BatchBody,
    BatchResult,
    ConsumeItem,
    HistoryPage,
    MovementBody,
    OpenAccountBody,
    OpenItem,
    TopupItem,
    TransactionView,
    VerificationView,
    VerifyBody,
    account_view,
    history_item,
    transaction_view,
)
from tollkeeper.credits.model import Kind, Opened, Operation, Posted, Verification
from tollkeeper.credits.service import PAGE_LIMIT, CreditsService
from tollkeeper.kernel.amounts import MAX_AMOUNT_MINOR
from tollkeeper.kernel.ids import EntropySource
from tollkeeper.kernel.principal import Principal, Scope
from tollkeeper.web.answer import JsonAnswer
from tollkeeper.web.auth import authorize
from tollkeeper.web.body import decode_body, read_body
from tollkeeper.web.errors import IdempotencyKeyInvalid, IdempotencyKeyMissing
from tollkeeper.web.express import Answering
from tollkeeper.web.idempotency import MAX_KEY_LENGTH, idempotency_key
from tollkeeper.web.openapi import Answer, Body, DocumentedOperation, RouteFacts, documented
from tollkeeper.web.problem import URN, ProblemKind, ProblemTable, problem_of
from tollkeeper.web.query import query_of, refuse_query

PROBLEMS: ProblemTable = {
    errors.AccountNotFound: ProblemKind(404, URN + "account-not-found", "Account not found"),
    errors.AccountTaken: ProblemKind(
        409, URN + "account-taken", "The account belongs to another tenant"
    ),
    errors.InsufficientCredits: ProblemKind(
        402, URN + "insufficient-credits", "Insufficient credits"
    ),
    errors.BalanceTooLarge: ProblemKind(
        422, URN + "balance-too-large", "The balance would be too large"
    ),
    errors.KeyReused: ProblemKind(
        422, URN + "idempotency-key-reused", "Idempotency-Key was used for another request"
    ),
    errors.KeyExpired: ProblemKind(
        422, URN + "idempotency-key-expired", "Idempotency-Key is outside its lifetime"
    ),
    errors.InvalidRequest: ProblemKind(400, URN + "invalid-request", "Invalid request"),
    errors.QueueFull: ProblemKind(503, URN + "overloaded", "Too many operations wait"),
    errors.Draining: ProblemKind(503, URN + "draining", "The service is shutting down"),
    errors.LedgerUnavailable: ProblemKind(
        503, URN + "ledger-unavailable", "The ledger cannot answer now"
    ),
    errors.VerificationRunning: ProblemKind(
        429, URN + "verification-running", "A verification is running"
    ),
    errors.CheckpointNotFound: ProblemKind(404, URN + "checkpoint-not-found", "No such checkpoint"),
    errors.NothingToProve: ProblemKind(404, URN + "nothing-to-prove", "No such transaction"),
    errors.NotCheckpointed: ProblemKind(
        409, URN + "not-checkpointed", "No checkpoint covers the transaction yet"
    ),
}

PAGE_DEFAULT = 100
"""Transactions in a page of a history that does not ask for another number."""

_ENCODER = msgspec.json.Encoder()
_REPLAYED = ((b"idempotent-replayed", b"true"),)
_AnyRequest = Request[None, None, State]


class CreditsApi:
    """The ledger's routes around its service."""

    def __init__(
        self, service: CreditsService, *, entropy: EntropySource, problems: ProblemTable
    ) -> None:
        self._service = service
        self._entropy = entropy
        self._problems = problems
        self._open_decoder = msgspec.json.Decoder(OpenAccountBody)
        self._movement_decoder = msgspec.json.Decoder(MovementBody)
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

    async def open_account(self, request: _AnyRequest) -> JsonAnswer:
        """Open an account for a tenant.

        Opening it again for the same tenant changes nothing and answers 200; for another, 409.
        """
        principal = authorize(request.scope, Scope.CREDITS_WRITE)
        refuse_query(request.scope)
        body = decode_body(self._open_decoder, await read_body(request.receive))
        _check_tenant(principal, body.tenant_id)
        opened = await self._service.execute_one(
            requests.open_account(body.account_id, body.tenant_id)
        )
        assert isinstance(opened, Opened)
        return _answer(account_view(opened.account), 201 if opened.created else 200)

    async def read_account(self, request: _AnyRequest) -> JsonAnswer:
        """Read an account as it stands."""
        principal = authorize(request.scope, Scope.CREDITS_READ)
        refuse_query(request.scope)
        account_id = requests.account_id_of(request.scope["path_params"]["account_id"])
        account = await self._service.account(account_id, principal.tenant_id)
        return _answer(account_view(account), 200)

    async def top_up(self, request: _AnyRequest) -> JsonAnswer:
        """Add credits to an account.

        The `Idempotency-Key` makes a retry safe: the same key and request again change nothing
        and answer as the first time.
        """
        return await self.move_topup(
            request.scope, request.receive, request.scope["path_params"]["account_id"]
        )

    async def consume(self, request: _AnyRequest) -> JsonAnswer:
        """Spend credits of an account, if it has them; a balance never goes below zero.

        A refusal changes nothing and keeps no key: the same key may be tried again.
        """
        return await self.move_consumption(
            request.scope, request.receive, request.scope["path_params"]["account_id"]
        )

    async def read_history(self, request: _AnyRequest) -> JsonAnswer:
        """Read a page of an account's transactions, oldest first."""
        principal = authorize(request.scope, Scope.CREDITS_READ)
        query = query_of(request.scope, _AFTER.name, _LIMIT.name)
        account_id = requests.account_id_of(request.scope["path_params"]["account_id"])
        behind = requests.whole_number("after", query.get("after", "0"), 0, MAX_AMOUNT_MINOR)
        count = requests.whole_number("limit", query.get("limit", str(PAGE_DEFAULT)), 1, PAGE_LIMIT)
        found = await self._service.history(
            account_id, principal.tenant_id, after=behind, limit=count + 1
        )
        page = found[:count]
        following = str(page[-1].sequence) if len(found) > count else None
        return _answer(HistoryPage([history_item(t) for t in page], following), 200)

    async def batch(self, request: _AnyRequest) -> JsonAnswer:
        """Decide up to 10,000 operations, in order.

        Each has its own result, so the answer is 200 also when some were refused. A body with a
        fault in any operation is refused whole, before anything is done.
        """
        principal = authorize(request.scope, Scope.CREDITS_WRITE)
        refuse_query(request.scope)
        body = decode_body(self._batch_decoder, await read_body(request.receive))
        operations = [
            self._operation(item, principal, index) for index, item in enumerate(body.operations)
        ]
        results = await self._service.execute(operations)
        return _answer(BatchAnswer([self._result(result) for result in results]), 200)

    async def verify(self, request: _AnyRequest) -> JsonAnswer:
        """Check the hash chain and balances of one account, or of a slice of all.

        Without `account_id`, send `next` as `after` until it is null: that was the whole ledger.
        """
        principal = authorize(request.scope, Scope.CREDITS_READ)
        refuse_query(request.scope)
        raw = await read_body(request.receive)
        body = decode_body(self._verify_decoder, raw or b"{}")
        found = await self._service.verify(
            None if body.account_id is None else requests.account_id_of(body.account_id),
            principal.tenant_id,
            after=body.after,
        )
        return _answer(found, 200)

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
        body = decode_body(self._movement_decoder, await read_body(receive))
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
            )
        )
        assert isinstance(posted, Posted)
        return _answer(
            transaction_view(posted.transaction), 201, _REPLAYED if posted.replayed else ()
        )

    def _said(self, facts: RouteFacts) -> type[DocumentedOperation]:
        return documented(facts, self._problems)

    def _operation(
        self, item: OpenItem | TopupItem | ConsumeItem, principal: Principal, index: int
    ) -> Operation:
        if isinstance(item, OpenItem):
            _check_tenant(principal, item.tenant_id, place=f"operations[{index}].")
            return requests.open_account(item.account_id, item.tenant_id)
        return requests.movement(
            kind=Kind.TOPUP if type(item) is TopupItem else Kind.CONSUME,
            account_id=item.account_id, amount=item.amount, key=item.idempotency_key,
            entropy=self._entropy(), tenant_id=principal.tenant_id,
            description=item.description, metadata=item.metadata, place=f"operations[{index}].",
        )  # fmt: skip

    def _result(self, result: Result) -> BatchResult:
        if type(result) is Posted:
            return BatchResult(
                status=201,
                replayed=result.replayed,
                transaction=transaction_view(result.transaction),
            )
        if type(result) is Opened:
            return BatchResult(
                status=201 if result.created else 200, account=account_view(result.account)
            )
        assert isinstance(result, errors.CreditsError)
        problem = problem_of(result, self._problems)
        return BatchResult(status=problem.status, problem=problem.document())


def _check_tenant(principal: Principal, tenant_id: str, place: str = "") -> None:
    if principal.tenant_id is not None and principal.tenant_id != tenant_id:
        raise requests.invalid(
            f"{place}tenant_id", f"this key is bound to tenant {principal.tenant_id}"
        )


def _answer(
    view: AccountView | TransactionView | HistoryPage | BatchAnswer | Verification,
    status: int,
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> JsonAnswer:
    return JsonAnswer(_ENCODER.encode(view), status, headers)


_ACCOUNT_ID = Parameter(
    name="account_id",
    param_in="path",
    required=True,
    description=ID_RULE,
    schema=Schema(type=OpenAPIType.STRING, pattern=requests.ID_PATTERN),
    example="acme-prod",
)
_AFTER = Parameter(
    name="after",
    param_in="query",
    required=False,
    description="`next` of the page before; left out: from the start",
    schema=Schema(type=OpenAPIType.STRING, pattern="^[0-9]{1,19}$"),
)
_LIMIT = Parameter(
    name="limit",
    param_in="query",
    required=False,
    description="transactions in the page",
    schema=Schema(type=OpenAPIType.INTEGER, minimum=1, maximum=PAGE_LIMIT, default=PAGE_DEFAULT),
    example=10,
)
_REPLAYED_HEADER: dict[str, dict[str, object]] = {
    "Idempotent-Replayed": {
        "description": "present when the key was known: this is the first time's answer",
        "schema": {"type": "string", "const": "true"},
    }
}


def _key_header(example: str) -> Parameter:
    return Parameter(
        name="Idempotency-Key",
        param_in="header",
        required=True,
        description="names this request on this account; visible ASCII, a UUIDv7 is best. "
        "Send the same key again when no answer came",
        schema=Schema(
            type=OpenAPIType.STRING,
            pattern=requests.KEY_PATTERN,
            min_length=1,
            max_length=MAX_KEY_LENGTH,
        ),
        example=example,
    )


def _movement(
    summary: str, key: str, example: dict[str, object], *more: type[errors.Refusal]
) -> RouteFacts:
    return RouteFacts(
        summary=summary,
        tag="transactions",
        scope=Scope.CREDITS_WRITE,
        parameters=(_ACCOUNT_ID, _key_header(key)),
        body=Body(struct=MovementBody, example=example),
        answers={
            201: Answer(
                description="done: the transaction, and the account's state after it",
                view=TransactionView,
                headers=_REPLAYED_HEADER,
            )
        },
        problems=(
            errors.InvalidRequest, IdempotencyKeyMissing, IdempotencyKeyInvalid,
            errors.AccountNotFound, errors.KeyReused, errors.KeyExpired, *more,
        ),
    )  # fmt: skip


_OPEN = RouteFacts(
    summary="Open an account",
    tag="accounts",
    scope=Scope.CREDITS_WRITE,
    body=Body(struct=OpenAccountBody, example={"account_id": "acme-prod", "tenant_id": "acme"}),
    answers={
        201: Answer(description="opened", view=AccountView),
        200: Answer(description="it was open already, for the same tenant", view=AccountView),
    },
    problems=(errors.AccountTaken,),
)
_READ = RouteFacts(
    summary="Read an account",
    tag="accounts",
    scope=Scope.CREDITS_READ,
    parameters=(_ACCOUNT_ID,),
    answers={200: Answer(description="the account", view=AccountView)},
    problems=(errors.InvalidRequest, errors.AccountNotFound),
)
_TOP_UP = _movement(
    "Top up",
    "purchase-1",
    {"amount": 10_000, "description": "first purchase"},
    errors.BalanceTooLarge,
)
_CONSUME = _movement(
    "Consume",
    "usage-1",
    {"amount": 250, "metadata": {"model": "small"}},
    errors.InsufficientCredits,
)
_HISTORY = RouteFacts(
    summary="Read an account's transactions",
    tag="transactions",
    scope=Scope.CREDITS_READ,
    parameters=(_ACCOUNT_ID, _AFTER, _LIMIT),
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
