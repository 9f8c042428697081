"""What callers of a group commit wait for, and what they put into it."""

import asyncio
from typing import Generic, TypeVar, cast

from tollkeeper.telemetry.request import current_request

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class Ticket(Generic[ResultT]):
    """What one caller waits for: the results of its items, in its order."""

    __slots__ = ("future", "missing", "request", "results")

    def __init__(self, count: int, future: asyncio.Future[list[ResultT]]) -> None:
        self.results: list[ResultT | None] = [None] * count
        self.missing = count
        self.future = future
        self.request = current_request.get()

    def has(self, index: int) -> bool:
        """Whether an item has its result."""
        return self.results[index] is not None

    def deliver(self, index: int, result: ResultT) -> None:
        """Hand an item's result over; the last one wakes the caller."""
        self.results[index] = result
        self.missing -= 1
        if self.missing == 0 and not self.future.done():
            self.future.set_result(cast("list[ResultT]", self.results))


class Pending(Generic[ItemT, ResultT]):
    """An accepted item on its way."""

    __slots__ = ("attempt", "index", "item", "ticket")

    def __init__(self, item: ItemT, ticket: Ticket[ResultT], index: int) -> None:
        self.item = item
        self.ticket = ticket
        self.index = index
        self.attempt = 0
