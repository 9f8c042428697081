"""Freezes over HTTP: which accounts are frozen, and lifting one.

Freezing has no route: only the reconciler does it, on what it has proven.
"""

import msgspec
from litestar import get, post
from litestar.handlers import HTTPRouteHandler

from tollkeeper.credits import errors, requests
from tollkeeper.credits.api import (
    AnyRequest,
    answer,
    page_limit,
    replayed_headers,
    whole_number,
)
from tollkeeper.credits.freeze_messages import (
    FrozenPage,
    UnfreezeBody,
    UnfreezeView,
    frozen_view,
    unfreeze_view,
)
from tollkeeper.credits.model import Fault, Posted
from tollkeeper.credits.requests import WriteWords
from tollkeeper.credits.route_facts import (
    ACCOUNT_ID,
    AFTER,
    KEY_PROBLEMS,
    LIMIT,
    key_header,
    transaction_answer,
)
from tollkeeper.credits.service import CreditsService
from tollkeeper.kernel.amounts import MAX_AMOUNT_MINOR
from tollkeeper.kernel.ids import AccountId, EntropySource
from tollkeeper.kernel.principal import Scope
from tollkeeper.web.answer import JsonAnswer
from tollkeeper.web.auth import authorize
from tollkeeper.web.body import decode_body, read_body
from tollkeeper.web.errors import OperatorNeeded
from tollkeeper.web.idempotency import idempotency_key
from tollkeeper.web.openapi import Answer, Body, RouteFacts, documented
from tollkeeper.web.problem import ProblemTable
from tollkeeper.web.query import query_of, refuse_query

FAULTS_SHOWN = 100
"""Faults of an account that the answer to its lifting names."""


class FreezesApi:
    """The routes of freezes around the ledger's service."""

    def __init__(
        self, service: CreditsService, *, entropy: EntropySource, problems: ProblemTable
    ) -> None:
        self._service = service
        self._entropy = entropy
        self._problems = problems
        self._decoder = msgspec.json.Decoder(UnfreezeBody)

    def routes(self) -> list[HTTPRouteHandler]:
        """Return the route handlers."""
        lift = post(
            "/v1/accounts/{account_id:str}/unfreeze",
            operation_class=documented(_UNFREEZE, self._problems),
        )
        show = get("/v1/frozen-accounts", operation_class=documented(_LIST, self._problems))
        return [lift(self.unfreeze), show(self.list_frozen)]

    async def unfreeze(self, request: AnyRequest) -> JsonAnswer:
        """Lift the freeze of an account; the reason stands in its chain for ever.

        The account then stands where its chain ends, whatever its own row said. The answer
        names what still does not hold, as `verify` does. The reconciler accepts what the account
        was frozen for, as it stood then, and freezes again for anything else.
        A key that is bound to a tenant cannot do this.
        """
        principal = authorize(request.scope, Scope.ADMIN)
        if principal.tenant_id is not None:
            raise OperatorNeeded(what="lifting a freeze")
        refuse_query(request.scope)
        key = idempotency_key(request.scope["headers"])
        account_id = requests.account_id_of(request.scope["path_params"]["account_id"])
        body = decode_body(self._decoder, await read_body(request.receive))
        words = WriteWords(
            account_id=account_id, key=key, entropy=self._entropy(), description=body.reason
        )
        posted = await self._service.execute_one(
            requests.unfreeze(words, actor=str(principal.key_id))
        )
        assert isinstance(posted, Posted)
        view = unfreeze_view(posted.transaction, await self._still_wrong(account_id))
        return answer(view, 201, replayed_headers(posted))

    async def _still_wrong(self, account_id: AccountId) -> tuple[Fault, ...] | None:
        try:
            return (await self._service.verify(account_id, None, after=None)).faults[:FAULTS_SHOWN]
        except errors.VerificationRunning:
            return None

    async def list_frozen(self, request: AnyRequest) -> JsonAnswer:
        """Read a page of the accounts that are frozen, the longest frozen first."""
        principal = authorize(request.scope, Scope.CREDITS_READ)
        query = query_of(request.scope, AFTER.name, LIMIT.name)
        after = whole_number("after", query.get("after", "0"), 0, MAX_AMOUNT_MINOR)
        count = page_limit(query)
        found = await self._service.frozen(principal.tenant_id, after=after, limit=count + 1)
        page = found[:count]
        following = str(page[-1].number) if len(found) > count else None
        return answer(FrozenPage([frozen_view(freeze) for freeze in page], following), 200)


_UNFREEZE = RouteFacts(
    summary="Lift the freeze of an account",
    tag="audit",
    scope=Scope.ADMIN,
    parameters=(ACCOUNT_ID, key_header("unfreeze-1")),
    body=Body(struct=UnfreezeBody, example={"reason": "row restored from backup, ticket 17"}),
    answers={201: transaction_answer(UnfreezeView)},
    problems=(
        *KEY_PROBLEMS, OperatorNeeded, errors.AccountNotFound, errors.NotFrozen,
        errors.UnfreezeUnsafe,
    ),
)  # fmt: skip
_LIST = RouteFacts(
    summary="List the frozen accounts",
    tag="audit",
    scope=Scope.CREDITS_READ,
    parameters=(AFTER, LIMIT),
    answers={200: Answer(description="a page, the longest frozen first", view=FrozenPage)},
    problems=(errors.InvalidRequest,),
)
