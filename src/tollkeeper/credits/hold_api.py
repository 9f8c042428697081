"""Holds and refunds over HTTP: routes, and what each can answer.

Ids are found by themselves: which account a hold or a transaction belongs to is read first, and
whether it may be changed is the planner's word.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar
from uuid import UUID

import msgspec
from litestar import get, post
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.spec import Parameter, Schema
from litestar.openapi.spec.enums import OpenAPIType

from tollkeeper.credits import errors, requests
from tollkeeper.credits.api import AnyRequest, answer, page_limit, posted_answer
from tollkeeper.credits.messages import (
    CaptureBody,
    ExtendBody,
    HoldBody,
    HoldsPage,
    HoldView,
    RefundBody,
    ReleaseBody,
    TermsView,
    hold_view,
    terms_view,
)
from tollkeeper.credits.model import HoldOperation, Posted, Refund, Reserve
from tollkeeper.credits.requests import WriteWords
from tollkeeper.credits.route_facts import (
    ACCOUNT_ID,
    AFTER,
    EXAMPLE_ID,
    LIMIT,
    OF_HOLD,
    OF_TAKING,
    OF_TRANSACTION,
    written,
)
from tollkeeper.credits.service import CreditsService
from tollkeeper.kernel.clock import Clock
from tollkeeper.kernel.ids import AccountId, EntropySource, TransactionId
from tollkeeper.kernel.principal import Principal, Scope
from tollkeeper.web.answer import JsonAnswer
from tollkeeper.web.auth import authorize
from tollkeeper.web.body import decode_body, read_body
from tollkeeper.web.idempotency import idempotency_key
from tollkeeper.web.openapi import Answer, Body, NextStep, RouteFacts, documented
from tollkeeper.web.problem import ProblemTable
from tollkeeper.web.query import query_of, refuse_query

_FIRST_ID = TransactionId(UUID(int=0))
SettlingBody = CaptureBody | ReleaseBody | ExtendBody | RefundBody
_SomeBody = TypeVar("_SomeBody", CaptureBody, ReleaseBody, ExtendBody, RefundBody)


class HoldsApi:
    """The routes of holds, refunds and single transactions around the ledger's service."""

    def __init__(
        self,
        service: CreditsService,
        *,
        clock: Clock,
        entropy: EntropySource,
        problems: ProblemTable,
    ) -> None:
        self._service = service
        self._clock = clock
        self._entropy = entropy
        self._problems = problems

    def routes(self) -> list[HTTPRouteHandler]:
        """Return the route handlers."""
        hold, account = "/v1/holds/{hold_id:str}", "/v1/accounts/{account_id:str}/holds"
        transaction = "/v1/transactions/{transaction_id:str}"

        def said(path: str, facts: RouteFacts) -> HTTPRouteHandler:
            kind = get if facts.body is None else post
            return kind(path, operation_class=documented(facts, self._problems))

        return [
            said(account, _HOLD)(self.hold),
            said(account, _LIST)(self.list_holds),
            said(hold, _READ)(self.read_hold),
            said(f"{hold}/capture", _CAPTURE)(self.capture),
            said(f"{hold}/extend", _EXTEND)(self.extend),
            said(f"{hold}/release", _RELEASE)(self.release),
            said(transaction, _TRANSACTION)(self.read_transaction),
            said(f"{transaction}/refunds", _REFUND)(self.refund),
        ]

    async def hold(self, request: AnyRequest) -> JsonAnswer:
        """Reserve credits of an account for a time.

        Reserved credits are still in the balance and no longer available. When the time is over
        they are available again by themselves.
        """
        principal = authorize(request.scope, Scope.CREDITS_WRITE)
        refuse_query(request.scope)
        key = idempotency_key(request.scope["headers"])
        account_id = requests.account_id_of(request.scope["path_params"]["account_id"])
        body = decode_body(_HOLD_DECODER, await read_body(request.receive))
        words = self._words(principal, account_id, key, body)
        return await self._posted(
            requests.reserve(
                words,
                amount=body.amount,
                expires_in_s=body.expires_in_s,
                allowance=body.allowance,
            )
        )

    async def list_holds(self, request: AnyRequest) -> JsonAnswer:
        """Read a page of an account's open holds, oldest first."""
        principal = authorize(request.scope, Scope.CREDITS_READ)
        query = query_of(request.scope, _AFTER_HOLD.name, LIMIT.name)
        account_id = requests.account_id_of(request.scope["path_params"]["account_id"])
        count = page_limit(query)
        after = requests.identifier("after", query["after"]) if "after" in query else _FIRST_ID
        found = await self._service.holds(
            account_id, principal.tenant_id, after=after, limit=count + 1
        )
        now, page = self._clock.now(), found[:count]
        following = str(page[-1].hold_id) if len(found) > count else None
        return answer(HoldsPage([hold_view(hold, now) for hold in page], following), 200)

    async def read_hold(self, request: AnyRequest) -> JsonAnswer:
        """Read a hold as it stands."""
        principal = authorize(request.scope, Scope.CREDITS_READ)
        refuse_query(request.scope)
        found = await self._service.hold(_hold_id(request), principal.tenant_id)
        return answer(hold_view(found, self._clock.now()), 200)

    async def capture(self, request: AnyRequest) -> JsonAnswer:
        """Take credits of a hold: all that is left, or a part, as often as something is left.

        With `final` what is left after it is given back. More than is left can be taken within the
        hold's allowance, if the account has it available.
        """

        def asked(words: WriteWords, hold_id: TransactionId, body: CaptureBody) -> HoldOperation:
            return requests.capture(words, hold_id=hold_id, amount=body.amount, final=body.final)

        return await self._change(request, _CAPTURE_DECODER, asked)

    async def release(self, request: AnyRequest) -> JsonAnswer:
        """Give back what is left of a hold."""

        def asked(words: WriteWords, hold_id: TransactionId, _body: ReleaseBody) -> HoldOperation:
            return requests.release(words, hold_id=hold_id)

        return await self._change(request, _RELEASE_DECODER, asked)

    async def extend(self, request: AnyRequest) -> JsonAnswer:
        """Let a hold last longer from now, or hold more, or both."""

        def asked(words: WriteWords, hold_id: TransactionId, body: ExtendBody) -> HoldOperation:
            return requests.extend(
                words, hold_id=hold_id, amount=body.amount, expires_in_s=body.expires_in_s
            )

        return await self._change(request, _EXTEND_DECODER, asked)

    async def read_transaction(self, request: AnyRequest) -> JsonAnswer:
        """Read one transaction."""
        principal = authorize(request.scope, Scope.CREDITS_READ)
        refuse_query(request.scope)
        found = await self._service.transaction(_transaction_id(request), principal.tenant_id)
        return answer(terms_view(found), 200)

    async def refund(self, request: AnyRequest) -> JsonAnswer:
        """Give back a consumption or a capture, or a part of it; never more than it took."""
        principal = authorize(request.scope, Scope.CREDITS_WRITE)
        transaction_id = _transaction_id(request)
        key, body = await _read_write(request, _REFUND_DECODER)
        account_id = await self._service.account_of_transaction(transaction_id, principal.tenant_id)
        words = self._words(principal, account_id, key, body)
        return await self._posted(
            requests.refund(words, transaction_id=transaction_id, amount=body.amount)
        )

    async def _change(
        self,
        request: AnyRequest,
        decoder: msgspec.json.Decoder[_SomeBody],
        asked: Callable[[WriteWords, TransactionId, _SomeBody], HoldOperation],
    ) -> JsonAnswer:
        principal = authorize(request.scope, Scope.CREDITS_WRITE)
        hold_id = _hold_id(request)
        key, body = await _read_write(request, decoder)
        account_id = await self._service.account_of_hold(hold_id, principal.tenant_id)
        words = self._words(principal, account_id, key, body)
        return await self._posted(asked(words, hold_id, body))

    def _words(
        self, principal: Principal, account_id: AccountId, key: str, body: HoldBody | SettlingBody
    ) -> WriteWords:
        return WriteWords(
            account_id=account_id, key=key, entropy=self._entropy(),
            tenant_id=principal.tenant_id, description=body.description, metadata=body.metadata,
        )  # fmt: skip

    async def _posted(self, write: HoldOperation | Refund | Reserve) -> JsonAnswer:
        posted = await self._service.execute_one(write)
        assert isinstance(posted, Posted)
        return posted_answer(posted)


async def _read_write(
    request: AnyRequest, decoder: msgspec.json.Decoder[_SomeBody]
) -> tuple[str, _SomeBody]:
    """Return the idempotency key and the body; no body is an empty one."""
    refuse_query(request.scope)
    key = idempotency_key(request.scope["headers"])
    return key, decode_body(decoder, await read_body(request.receive) or b"{}")


def _hold_id(request: AnyRequest) -> TransactionId:
    return requests.identifier("hold_id", request.scope["path_params"]["hold_id"])


def _transaction_id(request: AnyRequest) -> TransactionId:
    return requests.identifier("transaction_id", request.scope["path_params"]["transaction_id"])


_HOLD_DECODER = msgspec.json.Decoder(HoldBody)
_CAPTURE_DECODER = msgspec.json.Decoder(CaptureBody)
_RELEASE_DECODER = msgspec.json.Decoder(ReleaseBody)
_EXTEND_DECODER = msgspec.json.Decoder(ExtendBody)
_REFUND_DECODER = msgspec.json.Decoder(RefundBody)


def _id(name: str, description: str) -> Parameter:
    return Parameter(
        name=name,
        param_in="path",
        required=True,
        description=description,
        schema=Schema(type=OpenAPIType.STRING, pattern=requests.UUID7_PATTERN),
        example=EXAMPLE_ID,
    )


_HOLD_ID = _id("hold_id", "`hold_id` of the answer that opened it")
_TRANSACTION_ID = _id("transaction_id", "`transaction_id` of the answer that made it")
_AFTER_HOLD = Parameter(
    name=AFTER.name,
    param_in="query",
    required=False,
    description=AFTER.description,
    schema=Schema(type=OpenAPIType.STRING, pattern=requests.UUID7_PATTERN),
)


def _settling(
    summary: str,
    key: str,
    body: type[msgspec.Struct],
    example: Mapping[str, object],
    *more: type[errors.Refusal],
    next_steps: tuple[NextStep, ...] = OF_TRANSACTION,
) -> RouteFacts:
    return written(
        summary, key, Body(struct=body, example=example, is_required=False),
        place=_HOLD_ID, view=TermsView, tag="holds",
        problems=(errors.HoldNotFound, errors.HoldClosed, *more), next_steps=next_steps,
    )  # fmt: skip


_HOLD = written(
    "Hold credits", "hold-1",
    Body(struct=HoldBody, example={"amount": 500, "expires_in_s": 600, "allowance": 100}),
    place=ACCOUNT_ID, view=TermsView, tag="holds",
    problems=(errors.AccountNotFound, errors.InsufficientCredits), next_steps=OF_HOLD,
)  # fmt: skip
_LIST = RouteFacts(
    summary="Read an account's open holds",
    tag="holds",
    scope=Scope.CREDITS_READ,
    parameters=(ACCOUNT_ID, _AFTER_HOLD, LIMIT),
    answers={200: Answer(description="a page, oldest first", view=HoldsPage)},
    problems=(errors.InvalidRequest, errors.AccountNotFound),
)
_READ = RouteFacts(
    summary="Read a hold",
    tag="holds",
    scope=Scope.CREDITS_READ,
    parameters=(_HOLD_ID,),
    answers={200: Answer(description="the hold", view=HoldView)},
    problems=(errors.InvalidRequest, errors.HoldNotFound),
)
_CAPTURE = _settling(
    "Capture a hold", "capture-1", CaptureBody, {"amount": 120},
    errors.CaptureTooLarge, errors.InsufficientCredits, next_steps=OF_TAKING,
)  # fmt: skip
_RELEASE = _settling("Release a hold", "release-1", ReleaseBody, {})
_EXTEND = _settling(
    "Extend a hold", "extend-1", ExtendBody, {"expires_in_s": 1_200}, errors.InsufficientCredits
)
_TRANSACTION = RouteFacts(
    summary="Read a transaction",
    tag="transactions",
    scope=Scope.CREDITS_READ,
    parameters=(_TRANSACTION_ID,),
    answers={200: Answer(description="the transaction", view=TermsView)},
    problems=(errors.InvalidRequest, errors.TransactionNotFound),
)
_REFUND = written(
    "Refund a transaction", "refund-1",
    Body(struct=RefundBody, example={"amount": 20}, is_required=False),
    place=_TRANSACTION_ID, view=TermsView, tag="transactions",
    problems=(
        errors.TransactionNotFound, errors.NotRefundable, errors.RefundTooLarge,
        errors.BalanceTooLarge,
    ),
)  # fmt: skip
