"""The ledger over HTTP: routes, bodies, answers, and which error is which problem.

Handlers take the raw request and answer bytes: with Litestar's own decoding and encoding a request
costs 24.8 µs in the framework, so 16.3 µs (measured in process). What a body must be is said once,
by the structs here; the OpenAPI document is made from the same structs.
"""

from typing import Annotated

import msgspec
from litestar import Request, get, post
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Parameter, Schema
from litestar.openapi.spec.enums import OpenAPIType
from litestar.params import FromQuery
from litestar.response.base import ASGIResponse
from msgspec import Meta

from tollkeeper.credits import errors, requests
from tollkeeper.credits.engine import Result
from tollkeeper.credits.model import (
    BATCH_LIMIT,
    Account,
    Fault,
    Kind,
    Opened,
    Operation,
    Posted,
    Transaction,
    Verification,
)
from tollkeeper.credits.service import PAGE_LIMIT, CreditsService
from tollkeeper.kernel.amounts import MAX_AMOUNT_MINOR
from tollkeeper.kernel.ids import EntropySource
from tollkeeper.kernel.principal import Principal, Scope
from tollkeeper.web.auth import authorize
from tollkeeper.web.body import decode_body, read_body
from tollkeeper.web.idempotency import idempotency_key
from tollkeeper.web.openapi import BodyOperation, body_operation
from tollkeeper.web.problem import URN, ProblemKind, ProblemTable, problem_of

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
}

Identifier = Annotated[
    str,
    Meta(
        pattern=requests.ID_PATTERN,
        description="1 to 128 letters, digits or `._~:@!$&'()*+,;=|-`; a letter or digit first",
        examples=["acme-prod"],
    ),
]
Amount = Annotated[
    int, Meta(ge=1, le=MAX_AMOUNT_MINOR, description="minor units, 63 bits", examples=[250])
]
Description = Annotated[
    str | None, Meta(description=f"1 to {requests.DESCRIPTION_LIMIT} characters, kept for ever")
]
AnyValue = Annotated[object, Meta(extra_json_schema={"description": "any JSON value"})]
Metadata = Annotated[
    dict[str, AnyValue] | None,
    Meta(description=f"a JSON object of at most {requests.METADATA_LIMIT_BYTES} bytes"),
]


class OpenAccountBody(msgspec.Struct, forbid_unknown_fields=True):
    """Open an account for a tenant."""

    account_id: Identifier
    tenant_id: Identifier


class MovementBody(msgspec.Struct, forbid_unknown_fields=True):
    """Top up or consume."""

    amount: Amount
    description: Description = None
    metadata: Metadata = None


class OpenItem(msgspec.Struct, forbid_unknown_fields=True, tag_field="op", tag="open"):
    """An operation of a batch: open an account."""

    account_id: Identifier
    tenant_id: Identifier


class _MovementItem(msgspec.Struct, forbid_unknown_fields=True, tag_field="op"):
    account_id: Identifier
    idempotency_key: Annotated[str, Meta(pattern=requests.KEY_PATTERN)]
    amount: Amount
    description: Description = None
    metadata: Metadata = None


class TopupItem(_MovementItem, tag="topup"):
    """An operation of a batch: top up."""


class ConsumeItem(_MovementItem, tag="consume"):
    """An operation of a batch: consume."""


class BatchBody(msgspec.Struct, forbid_unknown_fields=True):
    """Independent operations, decided in this order."""

    operations: Annotated[
        list[OpenItem | TopupItem | ConsumeItem], Meta(min_length=1, max_length=BATCH_LIMIT)
    ]


class VerifyBody(msgspec.Struct, forbid_unknown_fields=True):
    """Verify one account, or a slice of all behind the cursor `after`."""

    account_id: Identifier | None = None
    after: Identifier | None = None


class AccountView(msgspec.Struct):
    """An account; amounts in minor units, `version` is the sequence of its last transaction."""

    account_id: str
    tenant_id: str
    balance: int
    reserved: int
    available: int
    version: int
    head_hash: str
    created_at: str


class TransactionView(msgspec.Struct):
    """A transaction; `balance`, `reserved`, `available` are the state after it."""

    transaction_id: str
    account_id: str
    kind: Kind
    amount: int
    balance: int
    reserved: int
    available: int
    sequence: int
    hash: str
    created_at: str


class HistoryItem(TransactionView):
    """A transaction as a history shows it."""

    description: str | None
    metadata: msgspec.Raw | None


class HistoryPage(msgspec.Struct):
    """Transactions, oldest first; `next` is the cursor of the next page, null on the last."""

    items: list[HistoryItem]
    next: str | None


class BatchResult(msgspec.Struct, omit_defaults=True):
    """What became of one operation: `status` is what it would have answered alone."""

    status: int
    replayed: bool = False
    transaction: TransactionView | None = None
    account: AccountView | None = None
    problem: dict[str, object] | None = None


class BatchAnswer(msgspec.Struct):
    """One result per operation, in order."""

    results: list[BatchResult]


class VerificationView(msgspec.Struct):
    """What was checked and found; `next` continues behind this slice, null at the end."""

    accounts: int
    transactions: int
    topped_up: int
    consumed: int
    balance: int
    faults: tuple[Fault, ...]
    more_faults: bool
    next: str | None


BODIES = (OpenAccountBody, MovementBody, BatchBody, VerifyBody)
"""Bodies that stand in the OpenAPI document."""

_ENCODER = msgspec.json.Encoder()
_REPLAYED = {"Idempotent-Replayed": "true"}
_KEY_HEADER = Parameter(
    name="Idempotency-Key",
    param_in="header",
    required=True,
    description="1 to 255 visible ASCII characters, unique to this request on this account; "
    "UUIDv7 is best. The same key and request again answer as the first time.",
    schema=Schema(type=OpenAPIType.STRING, min_length=1, max_length=255),
)
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
        return [
            post("/v1/accounts", operation_class=body_operation(OpenAccountBody),
                 responses=_answers(AccountView, 201, 200, 400, 409))(self.open_account),
            get("/v1/accounts/{account_id:str}",
                responses=_answers(AccountView, 200, 404))(self.account),
            post("/v1/accounts/{account_id:str}/topups", operation_class=_money_operation(),
                 responses=_answers(TransactionView, 201, 400, 404, 422, 503))(self.top_up),
            post("/v1/accounts/{account_id:str}/consumptions", operation_class=_money_operation(),
                 responses=_answers(TransactionView, 201, 400, 402, 404, 422, 503))(self.consume),
            get("/v1/accounts/{account_id:str}/transactions",
                responses=_answers(HistoryPage, 200, 400, 404))(self.history),
            post("/v1/batch", operation_class=body_operation(BatchBody),
                 responses=_answers(BatchAnswer, 200, 400, 413, 503))(self.batch),
            post("/v1/audit/verify", operation_class=body_operation(VerifyBody),
                 responses=_answers(VerificationView, 200, 400, 404, 429))(self.verify),
        ]  # fmt: skip

    async def open_account(self, request: _AnyRequest) -> ASGIResponse:
        """Open an account; opening it again for the same tenant answers 200 and changes nothing."""
        principal = authorize(request.scope, Scope.CREDITS_WRITE)
        body = decode_body(self._open_decoder, await read_body(request.receive))
        _check_tenant(principal, body.tenant_id)
        opened = await self._service.execute_one(
            requests.open_account(body.account_id, body.tenant_id)
        )
        assert isinstance(opened, Opened)
        return _answer(account_view(opened.account), 201 if opened.created else 200)

    async def account(self, request: _AnyRequest) -> ASGIResponse:
        """Read an account as it stands."""
        principal = authorize(request.scope, Scope.CREDITS_READ)
        account_id = requests.account_id_of(request.scope["path_params"]["account_id"])
        account = await self._service.account(account_id, principal.tenant_id)
        return _answer(account_view(account), 200)

    async def top_up(self, request: _AnyRequest) -> ASGIResponse:
        """Add credits to an account."""
        return await self._move(request, Kind.TOPUP)

    async def consume(self, request: _AnyRequest) -> ASGIResponse:
        """Spend credits of an account, if it has them."""
        return await self._move(request, Kind.CONSUME)

    async def history(
        self,
        request: _AnyRequest,
        after: FromQuery[str | None] = None,
        limit: FromQuery[str] = "100",
    ) -> ASGIResponse:
        """Read a page of an account's transactions, oldest first."""
        principal = authorize(request.scope, Scope.CREDITS_READ)
        account_id = requests.account_id_of(request.scope["path_params"]["account_id"])
        behind = _whole_number("after", after or "0", 0, MAX_AMOUNT_MINOR)
        count = _whole_number("limit", limit, 1, PAGE_LIMIT)
        found = await self._service.history(
            account_id, principal.tenant_id, after=behind, limit=count + 1
        )
        page = found[:count]
        following = str(page[-1].sequence) if len(found) > count else None
        return _answer(HistoryPage([history_item(t) for t in page], following), 200)

    async def batch(self, request: _AnyRequest) -> ASGIResponse:
        """Decide up to 10,000 independent operations, in order; each has its own result."""
        principal = authorize(request.scope, Scope.CREDITS_WRITE)
        body = decode_body(self._batch_decoder, await read_body(request.receive))
        operations = [
            self._operation(item, principal, index) for index, item in enumerate(body.operations)
        ]
        results = await self._service.execute(operations)
        return _answer(BatchAnswer([self._result(result) for result in results]), 200)

    async def verify(self, request: _AnyRequest) -> ASGIResponse:
        """Check hash chains and balances of one account, or of a slice of all."""
        principal = authorize(request.scope, Scope.CREDITS_READ)
        raw = await read_body(request.receive)
        body = decode_body(self._verify_decoder, raw or b"{}")
        found = await self._service.verify(
            None if body.account_id is None else requests.account_id_of(body.account_id),
            principal.tenant_id,
            after=body.after,
        )
        return _answer(found, 200)

    async def _move(self, request: _AnyRequest, kind: Kind) -> ASGIResponse:
        scope = request.scope
        principal = authorize(scope, Scope.CREDITS_WRITE)
        key = idempotency_key(scope["headers"])
        account_id = requests.account_id_of(scope["path_params"]["account_id"])
        body = decode_body(self._movement_decoder, await read_body(request.receive))
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
            transaction_view(posted.transaction), 201, _REPLAYED if posted.replayed else None
        )

    def _operation(
        self, item: OpenItem | TopupItem | ConsumeItem, principal: Principal, index: int
    ) -> Operation:
        if isinstance(item, OpenItem):
            _check_tenant(principal, item.tenant_id)
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


def account_view(account: Account) -> AccountView:
    """Return an account as the API shows it."""
    return AccountView(
        account_id=account.account_id, tenant_id=account.tenant_id, balance=account.balance,
        reserved=account.reserved, available=account.available, version=account.version,
        head_hash=account.head_hash.hex(), created_at=_iso(account),
    )  # fmt: skip


def transaction_view(transaction: Transaction) -> TransactionView:
    """Return a transaction as the answer to a money write shows it."""
    return TransactionView(
        transaction_id=str(transaction.transaction_id), account_id=transaction.account_id,
        kind=transaction.kind, amount=transaction.amount, balance=transaction.balance,
        reserved=transaction.reserved, available=transaction.balance - transaction.reserved,
        sequence=transaction.sequence, hash=transaction.hash.hex(), created_at=_iso(transaction),
    )  # fmt: skip


def history_item(transaction: Transaction) -> HistoryItem:
    """Return a transaction as a history shows it."""
    view = transaction_view(transaction)
    metadata = transaction.metadata
    return HistoryItem(
        **{name: getattr(view, name) for name in TransactionView.__struct_fields__},
        description=transaction.description,
        metadata=None if metadata is None else msgspec.Raw(metadata.encode()),
    )


def _iso(value: Account | Transaction) -> str:
    return value.created_at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _check_tenant(principal: Principal, tenant_id: str) -> None:
    if principal.tenant_id is not None and principal.tenant_id != tenant_id:
        raise requests.invalid("tenant_id", f"this key is bound to tenant {principal.tenant_id}")


def _whole_number(field: str, text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and least <= int(text) <= most):
        raise requests.invalid(field, f"must be a whole number from {least} to {most}")
    return int(text)


def _answer(
    view: AccountView | TransactionView | HistoryPage | BatchAnswer | Verification,
    status: int,
    headers: dict[str, str] | None = None,
) -> ASGIResponse:
    return ASGIResponse(
        body=_ENCODER.encode(view),
        status_code=status,
        media_type="application/json",
        headers=headers,
    )


def _money_operation() -> type[BodyOperation]:
    return body_operation(MovementBody, parameters=(_KEY_HEADER,))


def _answers(view: type[msgspec.Struct], *statuses: int) -> dict[int, ResponseSpec]:
    """Describe a route's answers: the view for success, a problem for everything else."""
    return {
        status: ResponseSpec(
            data_container=view if status < 400 else ProblemView,
            generate_examples=False,
            description="" if status < 400 else "see `type` and `detail`",
            media_type="application/json" if status < 400 else "application/problem+json",
        )
        for status in statuses
    }


class ProblemView(msgspec.Struct):
    """A problem (RFC 9457); more members carry the facts."""

    type: str
    title: str
    status: int
    detail: str | None = None
