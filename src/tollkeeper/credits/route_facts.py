"""What the routes of the ledger say of themselves alike: parameters, pages, money writes."""

import msgspec
from litestar.openapi.spec import Parameter, Schema
from litestar.openapi.spec.enums import OpenAPIType

from tollkeeper.credits import errors, requests
from tollkeeper.kernel.principal import Scope
from tollkeeper.web.errors import IdempotencyKeyInvalid, IdempotencyKeyMissing
from tollkeeper.web.idempotency import MAX_KEY_LENGTH
from tollkeeper.web.openapi import Answer, Body, NextStep, RouteFacts

PAGE_DEFAULT = 100
"""Rows in a page that does not ask for another number."""

PAGE_LIMIT = 1_000
"""Most rows in one page."""

EXAMPLE_ID = "01978a3c-5f00-7abc-8def-0123456789ab"
"""Stands in the document where an id of one's own belongs."""

ACCOUNT_ID = Parameter(
    name="account_id",
    param_in="path",
    required=True,
    description=requests.ID_RULE,
    schema=Schema(type=OpenAPIType.STRING, pattern=requests.ID_PATTERN),
    example="acme-prod",
)
AFTER = Parameter(
    name="after",
    param_in="query",
    required=False,
    description="`next` of the page before; left out: from the start",
    schema=Schema(type=OpenAPIType.STRING, pattern="^[0-9]{1,19}$"),
)
LIMIT = Parameter(
    name="limit",
    param_in="query",
    required=False,
    description="items in the page",
    schema=Schema(type=OpenAPIType.INTEGER, minimum=1, maximum=PAGE_LIMIT, default=PAGE_DEFAULT),
    example=10,
)
OF_ACCOUNT = tuple(
    NextStep(operation, "account_id")
    for operation in ("read_account", "read_history", "list_holds", "top_up", "consume", "hold")
)
OF_TRANSACTION = (NextStep("read_transaction", "transaction_id"),)
OF_TAKING = (*OF_TRANSACTION, NextStep("refund", "transaction_id"))
OF_HOLD = tuple(
    NextStep(operation, "hold_id") for operation in ("read_hold", "release", "extend", "capture")
)
"""What can be done next with what an answer names."""

_REPLAYED_HEADER: dict[str, dict[str, object]] = {
    "Idempotent-Replayed": {
        "description": "present when the key was known: this is the first time's answer",
        "schema": {"type": "string", "const": "true"},
    }
}


KEY_PROBLEMS = (
    errors.InvalidRequest, IdempotencyKeyMissing, IdempotencyKeyInvalid, errors.KeyReused,
    errors.KeyExpired, errors.TransactionVanished,
)  # fmt: skip
"""What every write with an idempotency key can answer."""


def key_header(example: str) -> Parameter:
    """Return the parameter that names a request."""
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


def written(  # keyword-only: what a money write's route says
    summary: str,
    key: str,
    body: Body,
    *,
    place: Parameter,
    view: type[msgspec.Struct],
    problems: tuple[type[errors.Refusal], ...],
    next_steps: tuple[NextStep, ...] = OF_TRANSACTION,
    tag: str = "transactions",
) -> RouteFacts:
    """Return what the document says of a money write; `place` is the parameter in its path."""
    return RouteFacts(
        summary=summary,
        tag=tag,
        scope=Scope.CREDITS_WRITE,
        parameters=(place, key_header(key)),
        body=body,
        answers={201: transaction_answer(view, next_steps)},
        problems=(*KEY_PROBLEMS, errors.AccountFrozen, *problems),
    )


def transaction_answer(
    view: type[msgspec.Struct], next_steps: tuple[NextStep, ...] = OF_TRANSACTION
) -> Answer:
    """Return what is answered when a transaction was written."""
    return Answer(
        description="done: the transaction, and the account's state after it",
        view=view,
        headers=_REPLAYED_HEADER,
        next_steps=next_steps,
    )
