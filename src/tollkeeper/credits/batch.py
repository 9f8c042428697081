"""The items of a batch become operations; one that makes no sense refuses the whole batch."""

import asyncio
from collections.abc import Sequence
from typing import assert_never

from tollkeeper.credits import requests
from tollkeeper.credits.messages import (
    CaptureItem,
    ConsumeItem,
    ExtendItem,
    HoldishItem,
    HoldItem,
    Item,
    OpenItem,
    RefundItem,
    ReleaseItem,
    TopupItem,
)
from tollkeeper.credits.model import Kind, Operation
from tollkeeper.kernel.ids import EntropySource
from tollkeeper.kernel.principal import Principal

BATCH_TURN_S = 0.005
"""A batch whose items take longer to read lets other requests have their turn."""


class BatchReader:
    """Makes operations of items; `entropy` gives the random bits of their transactions' ids."""

    def __init__(self, entropy: EntropySource) -> None:
        self._entropy = entropy

    async def operations(self, items: Sequence[Item], principal: Principal) -> list[Operation]:
        """Make operations of a batch's items; others get their turn while that takes long.

        Masking 500 crafted characters takes a millisecond, and a batch may have ten thousand.

        Raises:
            InvalidRequest: an item makes no sense; nothing of the batch is done.
        """
        loop = asyncio.get_running_loop()
        operations, until_s = [], loop.time() + BATCH_TURN_S
        for index, item in enumerate(items):
            operations.append(self._operation(item, principal, index))
            if loop.time() > until_s:
                await asyncio.sleep(0)
                until_s = loop.time() + BATCH_TURN_S
        return operations

    def _operation(self, item: Item, principal: Principal, index: int) -> Operation:
        place = f"operations[{index}]."
        match item:
            case OpenItem():
                check_tenant(principal, item.tenant_id, place)
                return requests.open_account(item.account_id, item.tenant_id, place)
            case TopupItem() | ConsumeItem():
                is_topup = isinstance(item, TopupItem)
                return requests.movement(
                    kind=Kind.TOPUP if is_topup else Kind.CONSUME,
                    account_id=item.account_id, amount=item.amount, key=item.idempotency_key,
                    entropy=self._entropy(), tenant_id=principal.tenant_id,
                    description=item.description, metadata=item.metadata,
                    up_to=isinstance(item, ConsumeItem) and item.up_to,
                    payment=item.payment if isinstance(item, TopupItem) else None, place=place,
                )  # fmt: skip
            case _:
                return self._hold_operation(item, principal, place)

    def _hold_operation(self, item: HoldishItem, principal: Principal, place: str) -> Operation:
        words = requests.WriteWords(
            account_id=item.account_id, key=item.idempotency_key, entropy=self._entropy(),
            tenant_id=principal.tenant_id, description=item.description, metadata=item.metadata,
            place=place,
        )  # fmt: skip
        match item:
            case HoldItem():
                return requests.reserve(
                    words, amount=item.amount, expires_in_s=item.expires_in_s,
                    allowance=item.allowance,
                )  # fmt: skip
            case CaptureItem():
                hold_id = requests.identifier(f"{place}hold_id", item.hold_id)
                return requests.capture(
                    words, hold_id=hold_id, amount=item.amount, final=item.final
                )
            case ReleaseItem():
                hold_id = requests.identifier(f"{place}hold_id", item.hold_id)
                return requests.release(words, hold_id=hold_id)
            case ExtendItem():
                hold_id = requests.identifier(f"{place}hold_id", item.hold_id)
                return requests.extend(
                    words, hold_id=hold_id, amount=item.amount, expires_in_s=item.expires_in_s
                )
            case RefundItem():
                refunded = requests.identifier(f"{place}transaction_id", item.transaction_id)
                return requests.refund(words, transaction_id=refunded, amount=item.amount)
            case _:
                assert_never(item)


def check_tenant(principal: Principal, tenant_id: str, place: str = "") -> None:
    """Refuse to open another tenant's account.

    Raises:
        InvalidRequest: the caller's key is bound to another tenant.
    """
    if principal.tenant_id is not None and principal.tenant_id != tenant_id:
        raise requests.invalid(
            f"{place}tenant_id", f"this key is bound to tenant {principal.tenant_id}"
        )
