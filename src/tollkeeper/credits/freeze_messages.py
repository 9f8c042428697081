"""Bodies and answers of freezes, as `messages.py` has the others'. Pure."""

from typing import Annotated

import msgspec
from msgspec import Meta

from tollkeeper.credits import requests
from tollkeeper.credits.messages import Moment, TransactionView, iso, transaction_view
from tollkeeper.credits.model import Fault, Freeze, Transaction


class UnfreezeBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Why the freeze is lifted."""

    reason: Annotated[
        str,
        Meta(
            description=f"1 to {requests.DESCRIPTION_LIMIT} characters, kept for ever in the "
            "account's chain; card numbers in it are masked"
        ),
    ]


class FrozenAccountView(msgspec.Struct):
    """A frozen account: what was found, and where it is written down."""

    account_id: str
    tenant_id: Annotated[str | None, Meta(description="null: the account's row is gone")]
    frozen_at: Moment
    version: Annotated[int, Meta(description="`version` of the account when it was frozen")]
    faults: Annotated[tuple[Fault, ...], Meta(description="the first of them")]
    evidence: Annotated[str | None, Meta(description="file in the worker's evidence directory")]
    evidence_sha256: Annotated[str | None, Meta(description="SHA-256 of that file")]
    evidence_problem: Annotated[str | None, Meta(description="why there is no such file")]


class FrozenPage(msgspec.Struct):
    """Frozen accounts, the longest frozen first; `next` is null on the last page."""

    items: list[FrozenAccountView]
    next: Annotated[str | None, Meta(description="send it as `after` for the next page")]


class UnfreezeView(TransactionView):
    """The transaction that lifted a freeze, its reason as description, and what is still wrong."""

    faults: Annotated[
        tuple[Fault, ...] | None,
        Meta(
            description="what still does not hold, the first of it: the account goes on all the "
            "same; null: not looked at, because a verification is running"
        ),
    ]


def frozen_view(freeze: Freeze) -> FrozenAccountView:
    """Return a frozen account as the API shows it."""
    digest = freeze.evidence_sha256
    return FrozenAccountView(
        account_id=freeze.account_id, tenant_id=freeze.tenant_id, frozen_at=iso(freeze.frozen_at),
        version=freeze.version, faults=freeze.faults, evidence=freeze.evidence,
        evidence_sha256=None if digest is None else digest.hex(),
        evidence_problem=freeze.evidence_problem,
    )  # fmt: skip


def unfreeze_view(transaction: Transaction, faults: tuple[Fault, ...] | None) -> UnfreezeView:
    """Return the answer to a lifting."""
    view = transaction_view(transaction)
    return UnfreezeView(
        **{name: getattr(view, name) for name in TransactionView.__struct_fields__},
        faults=faults,
    )
