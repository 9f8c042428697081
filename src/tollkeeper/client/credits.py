"""Typed calls of the credits service, with keys minted and kept over retries.

Not a cache and not a queue: every call is one question to the service, answered or raised.

Invariant: a money write carries one idempotency key for all its attempts: however often it is sent,
it has its effect at most once. That is what makes retrying after a lost connection right.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from urllib.parse import quote

import msgspec

from tollkeeper.client.alerts import AlertsCaller
from tollkeeper.client.caller import JSON as _JSON
from tollkeeper.client.caller import check_header
from tollkeeper.client.connection import Response
from tollkeeper.client.errors import AnswerMalformed, CallMalformed
from tollkeeper.client.messages import (
    Account,
    BatchAnswer,
    BatchResult,
    FrozenPage,
    Hold,
    HoldsPage,
    Lifted,
    LiftedReceipt,
    Operation,
    Page,
    Receipt,
    Transaction,
    Verification,
)
from tollkeeper.client.usage import UsageCaller
from tollkeeper.kernel.ids import mint_key

VERIFY_TIMEOUT_S = 600.0
"""Longest wait for one slice of `verify`: one account may have millions of transactions."""

FAULTS_LIMIT = 1_000
"""Most faults that `verify` lists."""

PAGE_LIMIT = 1_000
"""Most transactions on one page of the history."""


class CreditsClient(AlertsCaller, UsageCaller):
    """The credits service at a URL: see `Caller` for its connections, clock and retries."""

    def mint_key(self) -> str:
        """Mint a key for one money write, to be used for all its attempts."""
        return mint_key(self._clock.now(), self._entropy())

    async def open_account(self, account_id: str, tenant_id: str) -> Account:
        """Open an account, or return it when the tenant has it already.

        Raises:
            CallRefused: it belongs to another tenant.
        """
        body = _encoded({"account_id": account_id, "tenant_id": tenant_id})
        return self._decode(await self._call("POST", "/v1/accounts", _JSON, body), Account)

    async def account(self, account_id: str) -> Account:
        """Return the account as it is now."""
        return self._decode(await self._call("GET", _account_path(account_id)), Account)

    async def topup(
        self,
        account_id: str,
        amount: int,
        *,
        description: str | None = None,
        metadata: Mapping[str, object] | None = None,
        payment: Mapping[str, object] | None = None,
        key: str | None = None,
    ) -> Receipt:
        """Add credits. Without a `key`, one is minted and kept over this call's retries.

        A `payment` is sent as it is; the service masks it before it keeps or logs any of it.
        """
        body = _money_body(amount, description, metadata, payment=payment)
        return await self._write(f"{_account_path(account_id)}/topups", body, key)

    async def consume(
        self,
        account_id: str,
        amount: int,
        *,
        up_to: bool = False,
        description: str | None = None,
        metadata: Mapping[str, object] | None = None,
        key: str | None = None,
    ) -> Receipt:
        """Take credits. Without a `key`, one is minted and kept over this call's retries.

        With `up_to` what is available is taken when it is less; the receipt says how much.

        Raises:
            CallRefused: there are not enough, or there is no such account.
        """
        body = _money_body(amount, description, metadata, up_to=True if up_to else None)
        return await self._write(f"{_account_path(account_id)}/consumptions", body, key)

    async def hold(
        self,
        account_id: str,
        amount: int,
        *,
        expires_in_s: int | None = None,
        allowance: int | None = None,
        description: str | None = None,
        metadata: Mapping[str, object] | None = None,
        key: str | None = None,
    ) -> Receipt:
        """Reserve credits; the receipt's transaction has the `hold_id`.

        Raises:
            CallRefused: there are not enough, or there is no such account.
        """
        body = _money_body(
            amount, description, metadata, expires_in_s=expires_in_s, allowance=allowance
        )
        return await self._write(f"{_account_path(account_id)}/holds", body, key)

    async def capture(
        self,
        hold_id: str,
        amount: int | None = None,
        *,
        final: bool = False,
        metadata: Mapping[str, object] | None = None,
        key: str | None = None,
    ) -> Receipt:
        """Take of a hold: all that is left, or `amount`; `final` gives back what is left after it.

        Raises:
            CallRefused: the hold is closed, or the amount passes it and its allowance.
        """
        body = _money_body(amount, None, metadata, final=True if final else None)
        return await self._write(f"{_hold_path(hold_id)}/capture", body, key)

    async def release(self, hold_id: str, *, key: str | None = None) -> Receipt:
        """Give back what is left of a hold.

        Raises:
            CallRefused: the hold is closed already.
        """
        return await self._write(f"{_hold_path(hold_id)}/release", b"{}", key)

    async def extend(
        self,
        hold_id: str,
        *,
        expires_in_s: int | None = None,
        amount: int | None = None,
        key: str | None = None,
    ) -> Receipt:
        """Let a hold last longer from now, or hold `amount` more, or both.

        Raises:
            CallRefused: the hold is closed, or there are not enough credits.
        """
        body = _money_body(amount, None, None, expires_in_s=expires_in_s)
        return await self._write(f"{_hold_path(hold_id)}/extend", body, key)

    async def refund(
        self,
        transaction_id: str,
        amount: int | None = None,
        *,
        description: str | None = None,
        key: str | None = None,
    ) -> Receipt:
        """Give back a consumption or a capture: all that was not yet, or `amount`.

        Raises:
            CallRefused: it took less, or it is neither.
        """
        body = _money_body(amount, description, None)
        return await self._write(f"{_path('transactions', transaction_id)}/refunds", body, key)

    async def read_hold(self, hold_id: str) -> Hold:
        """Return a hold as it is now."""
        return self._decode(await self._call("GET", _hold_path(hold_id)), Hold)

    async def holds(self, account_id: str) -> AsyncIterator[Hold]:
        """Yield the open holds of an account, oldest first, a page in memory at a time."""
        after = ""
        while True:
            path = f"{_account_path(account_id)}/holds?limit={PAGE_LIMIT}{after}"
            page = self._decode(await self._call("GET", path), HoldsPage)
            for hold in page.items:
                yield hold
            if page.next is None:
                return
            after = f"&after={page.next}"

    async def unfreeze(
        self, account_id: str, reason: str, *, key: str | None = None
    ) -> LiftedReceipt:
        """Lift the freeze of an account, which then stands where its chain ends.

        Raises:
            CallRefused: it is not frozen, or it cannot stand there.
        """
        path = f"{_account_path(account_id)}/unfreeze"
        response = await self._send(path, _encoded({"reason": reason}), key)
        return LiftedReceipt(
            transaction=self._decode(response, Lifted), replayed=_is_replayed(response)
        )

    async def frozen(self, *, after: str | None = None, limit: int = PAGE_LIMIT) -> FrozenPage:
        """Return one page of the frozen accounts; `after` is a page's `next`."""
        cursor = f"&after={quote(after, safe='')}" if after is not None else ""
        path = f"/v1/frozen-accounts?limit={limit}{cursor}"
        return self._decode(await self._call("GET", path), FrozenPage)

    async def page(
        self, account_id: str, *, after: str | None = None, limit: int = PAGE_LIMIT
    ) -> Page:
        """Return one page of the history, oldest first; `after` is a page's `next`."""
        cursor = f"&after={quote(after, safe='')}" if after is not None else ""
        path = f"{_account_path(account_id)}/transactions?limit={limit}{cursor}"
        return self._decode(await self._call("GET", path), Page)

    async def transactions(
        self, account_id: str, *, after: str | None = None
    ) -> AsyncIterator[Transaction]:
        """Yield the whole history after a cursor, oldest first, a page in memory at a time."""
        while True:
            page = await self.page(account_id, after=after)
            for transaction in page.items:
                yield transaction
            if page.next is None:
                return
            after = page.next

    async def batch(self, operations: Sequence[Operation]) -> tuple[BatchResult, ...]:
        """Send operations together; each succeeds or fails by itself, results in their order.

        An operation without a key gets one, kept over this call's retries. Operations that the
        service could not take now (429, 503) are results like others: the caller decides.
        """
        keyed = [
            operation
            if operation.idempotency_key is not None or operation.op == "open"
            else msgspec.structs.replace(operation, idempotency_key=self.mint_key())
            for operation in operations
        ]
        body = _encoded({"operations": keyed})
        answer = self._decode(await self._call("POST", "/v1/batch", _JSON, body), BatchAnswer)
        if len(answer.results) != len(keyed):
            reason = f"{len(answer.results)} results for {len(keyed)} operations"
            raise AnswerMalformed(url=self._url, reason=reason)
        return answer.results

    async def verify(
        self,
        account_id: str | None = None,
        *,
        watch: Callable[[Verification], None] = lambda _: None,
    ) -> Verification:
        """Have the service check the chain and the balances of one account, or of all.

        The service checks all accounts a slice at a time; this asks until there is no next one, and
        tells `watch` after each what was found so far.
        """
        if account_id is not None:
            return await self._verify_slice({"account_id": account_id})
        found = await self._verify_slice({})
        watch(found)
        while found.next is not None:
            found = _joined(found, await self._verify_slice({"after": found.next}))
            watch(found)
        return found

    async def _verify_slice(self, request: dict[str, str]) -> Verification:
        body = _encoded(request)
        response = await self._call(
            "POST", "/v1/audit/verify", _JSON, body, timeout_s=VERIFY_TIMEOUT_S
        )
        return self._decode(response, Verification)

    async def _write(self, path: str, body: bytes, key: str | None) -> Receipt:
        response = await self._send(path, body, key)
        return Receipt(
            transaction=self._decode(response, Transaction), replayed=_is_replayed(response)
        )

    async def _send(self, path: str, body: bytes, key: str | None) -> Response:
        if key is None:  # an empty one is somebody's mistake: the service says so
            key = self.mint_key()
        check_header("key", key)
        headers = (*_JSON, ("Idempotency-Key", key))
        return await self._call("POST", path, headers, body)


def _is_replayed(response: Response) -> bool:
    return response.header("idempotent-replayed") == "true"


def _joined(first: Verification, second: Verification) -> Verification:
    faults = tuple(dict.fromkeys((*first.faults, *second.faults)))  # of the ledger as a whole: once
    return Verification(
        accounts=first.accounts + second.accounts,
        transactions=first.transactions + second.transactions,
        topped_up=first.topped_up + second.topped_up,
        consumed=first.consumed + second.consumed,
        balance=first.balance + second.balance,
        faults=faults[:FAULTS_LIMIT],
        more_faults=first.more_faults or second.more_faults or len(faults) > FAULTS_LIMIT,
        next=second.next,
    )


def _account_path(account_id: str) -> str:
    return _path("accounts", account_id)


def _hold_path(hold_id: str) -> str:
    return _path("holds", hold_id)


def _path(kind: str, name: str) -> str:
    field = f"{kind.removesuffix('s')}_id"
    if not name or "/" in name:
        raise CallMalformed(field=field, fault="must not be empty nor contain a slash")
    try:
        return f"/v1/{kind}/{quote(name, safe='')}"
    except UnicodeEncodeError as error:
        raise CallMalformed(field=field, fault="is not valid Unicode text") from error


def _encoded(document: object) -> bytes:
    try:
        return msgspec.json.encode(document)
    except UnicodeEncodeError as error:
        raise CallMalformed(field="the request", fault="has text that is not Unicode") from error


def _money_body(
    amount: int | None,
    description: str | None,
    metadata: Mapping[str, object] | None,
    **more: object,
) -> bytes:
    fields = {"amount": amount, "description": description, "metadata": metadata, **more}
    return _encoded({name: value for name, value in fields.items() if value is not None})
