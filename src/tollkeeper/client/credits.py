"""Typed calls of the credits service, with keys minted and kept over retries.

Not a cache and not a queue: every call is one question to the service, answered or raised.

Invariant: a money write carries one idempotency key for all its attempts: however often it is sent,
it has its effect at most once. That is what makes retrying after a lost connection right.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Literal, Self, TypeVar
from urllib.parse import quote

import msgspec

from tollkeeper.client.connection import Connection, Headers, Response, parse_origin
from tollkeeper.client.errors import (
    REFUSAL_STATUSES,
    AnswerMalformed,
    AnswerMissing,
    CallFailed,
    CallMalformed,
    CallRefused,
    ClientError,
    ServiceUnreachable,
)
from tollkeeper.client.messages import (
    Account,
    BatchAnswer,
    BatchResult,
    Hold,
    HoldsPage,
    Operation,
    Page,
    Receipt,
    Transaction,
    Verification,
)
from tollkeeper.kernel.backoff import Backoff
from tollkeeper.kernel.clock import Clock, SystemClock
from tollkeeper.kernel.ids import ENTROPY_BITS, EntropySource, mint_key, system_entropy

PATIENT = Backoff(first_ms=50.0, ceiling_ms=2_000.0, retries=7)
"""About five seconds in all: long enough for a service that restarts."""

IMPATIENT = Backoff(first_ms=50.0, ceiling_ms=500.0, retries=3)
"""About a third of a second in all: for somebody who waits at a terminal."""

RETRY_AFTER_LIMIT_S = 30.0
"""Longest wait taken from a `Retry-After` header."""

VERIFY_TIMEOUT_S = 600.0
"""Longest wait for one slice of `verify`: one account may have millions of transactions."""

FAULTS_LIMIT = 1_000
"""Most faults that `verify` lists."""

PAGE_LIMIT = 1_000
"""Most transactions on one page of the history."""

_RETRIED_STATUSES = frozenset({429, 502, 503, 504})
_JSON: Headers = (("Content-Type", "application/json"),)
_Decoded = TypeVar("_Decoded")


class CreditsClient:
    """The credits service at `url`, over up to `connections` keep-alive connections.

    More callers than connections wait their turn. Use it as an async context manager.
    Clock and randomness are this machine's unless others are given.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        clock: Clock | None = None,
        entropy: EntropySource = system_entropy,
        connections: int = 4,
        timeout_s: float = 30.0,
        backoff: Backoff = PATIENT,
    ) -> None:
        if connections < 1:
            raise ValueError("a client needs at least one connection")
        self._url = url
        self._clock = clock or SystemClock()
        self._entropy = entropy
        self._backoff = backoff
        _check_header("api_key", api_key)
        headers: Headers = (("Authorization", f"Bearer {api_key}"),)
        origin = parse_origin(url)
        self._connections = tuple(
            Connection(origin, headers=headers, timeout_s=timeout_s) for _ in range(connections)
        )
        # Last in, first out: a client that needs few connections keeps few open.
        self._idle: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
        for connection in self._connections:
            self._idle.put_nowait(connection)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        for connection in self._connections:
            connection.abort()

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
        key: str | None = None,
    ) -> Receipt:
        """Add credits. Without a `key`, one is minted and kept over this call's retries."""
        body = _money_body(amount, description, metadata)
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

    async def verify(self, account_id: str | None = None) -> Verification:
        """Have the service check the chain and the balances of one account, or of all.

        The service checks all accounts a slice at a time; this asks until there is no next one.
        """
        if account_id is not None:
            return await self._verify_slice({"account_id": account_id})
        found = await self._verify_slice({})
        while found.next is not None:
            found = _joined(found, await self._verify_slice({"after": found.next}))
        return found

    async def _verify_slice(self, request: dict[str, str]) -> Verification:
        body = _encoded(request)
        response = await self._call(
            "POST", "/v1/audit/verify", _JSON, body, timeout_s=VERIFY_TIMEOUT_S
        )
        return self._decode(response, Verification)

    async def _write(self, path: str, body: bytes, key: str | None) -> Receipt:
        if key is None:  # an empty one is somebody's mistake: the service says so
            key = self.mint_key()
        _check_header("key", key)
        headers = (*_JSON, ("Idempotency-Key", key))
        response = await self._call("POST", path, headers, body)
        replayed = response.header("idempotent-replayed") == "true"
        return Receipt(transaction=self._decode(response, Transaction), replayed=replayed)

    async def _call(
        self,
        method: Literal["GET", "POST"],
        path: str,
        headers: Headers = (),
        body: bytes = b"",
        *,
        timeout_s: float | None = None,
    ) -> Response:
        # Every call of this client may be sent again: reads and `verify` change nothing, opening
        # an account twice opens it once, and money writes carry a key.
        attempt = 0
        while True:
            failure: ClientError
            connection = await self._idle.get()
            try:
                response = await connection.request(
                    method, path, headers, body, timeout_s=timeout_s
                )
                if response.status < 300:
                    return response
                failure = self._failure_of(response)
            except (ServiceUnreachable, AnswerMissing) as error:
                failure = error
            finally:
                self._idle.put_nowait(connection)
            if attempt == self._backoff.retries or not _may_pass(failure):
                raise failure
            await self._clock.sleep(self._wait_s(attempt, failure))
            attempt += 1

    def _wait_s(self, attempt: int, failure: ClientError) -> float:
        jitter = self._entropy() / 2.0**ENTROPY_BITS
        asked_s = failure.retry_after_s if isinstance(failure, CallFailed) else None
        return max(self._backoff.wait_ms(attempt, jitter) / 1_000.0, asked_s or 0.0)

    def _failure_of(self, response: Response) -> CallFailed:
        try:
            facts = msgspec.json.decode(response.body, type=dict[str, object])
        except msgspec.DecodeError:
            facts = {}
        kind = str(facts.pop("type", "about:blank"))
        refused = response.status in REFUSAL_STATUSES and kind != "about:blank"
        facts.pop("status", None)
        return (CallRefused if refused else CallFailed)(
            status=response.status,
            type=kind,
            title=str(facts.pop("title", f"{self._url} answered {response.status}")),
            detail=str(facts.pop("detail", "")),
            facts=facts,
            retry_after_s=_retry_after_s(response.header("retry-after")),
        )

    def _decode(self, response: Response, kind: type[_Decoded]) -> _Decoded:
        try:
            return msgspec.json.decode(response.body, type=kind)
        except msgspec.DecodeError as error:
            raise AnswerMalformed(url=self._url, reason=str(error)) from error


def _may_pass(failure: ClientError) -> bool:
    if isinstance(failure, CallFailed):
        return failure.status in _RETRIED_STATUSES
    return not isinstance(failure, AnswerMalformed)


def _joined(first: Verification, second: Verification) -> Verification:
    room = max(0, FAULTS_LIMIT - len(first.faults))
    return Verification(
        accounts=first.accounts + second.accounts,
        transactions=first.transactions + second.transactions,
        topped_up=first.topped_up + second.topped_up,
        consumed=first.consumed + second.consumed,
        balance=first.balance + second.balance,
        faults=(*first.faults, *second.faults[:room]),
        more_faults=first.more_faults or second.more_faults or len(second.faults) > room,
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


def _check_header(field: str, value: str) -> None:
    if not value.isascii() or not value.isprintable():
        raise CallMalformed(field=field, fault="must be visible ASCII characters")


def _money_body(
    amount: int | None,
    description: str | None,
    metadata: Mapping[str, object] | None,
    **more: object,
) -> bytes:
    fields = {"amount": amount, "description": description, "metadata": metadata, **more}
    return _encoded({name: value for name, value in fields.items() if value is not None})


def _retry_after_s(text: str | None) -> float | None:
    # Only the form in seconds: the service sends no other.
    if text is None or not text.isascii() or not text.isdigit():
        return None
    return min(float(text), RETRY_AFTER_LIMIT_S)
