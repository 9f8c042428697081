"""`tollkeeper credits hold|capture|release|extend|refund|holds`: promised credits, and given back.

Adds its commands to those of `cli.py`; importing this module is what puts them there.
"""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Protocol, cast

import typer

from tollkeeper.credits.cli import (
    Account,
    Amount,
    AsJson,
    Description,
    Key,
    Ledger,
    ReceiptView,
    app,
    moment_text,
    print_receipt,
    terminal_of,
)
from tollkeeper.kernel.amounts import MAX_AMOUNT_MINOR

__all__ = ["app"]

_COLUMNS = ("hold", "#amount", "#captured", "#remaining", "expires (UTC)")


class HoldView(Protocol):
    """What is printed of a hold."""

    @property
    def hold_id(self) -> str: ...
    @property
    def account_id(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def amount(self) -> int: ...
    @property
    def captured(self) -> int: ...
    @property
    def released(self) -> int: ...
    @property
    def remaining(self) -> int: ...
    @property
    def allowance(self) -> int: ...
    @property
    def overrun(self) -> int: ...
    @property
    def expires_at(self) -> datetime: ...


class HoldLedger(Ledger, Protocol):
    """The calls these commands make beside those of `cli.py`."""

    async def hold(
        self,
        account_id: str,
        amount: int,
        *,
        expires_in_s: int | None = None,
        allowance: int | None = None,
        description: str | None = None,
        key: str | None = None,
    ) -> ReceiptView:
        """Reserve credits."""
        ...

    async def capture(
        self,
        hold_id: str,
        amount: int | None = None,
        *,
        final: bool = False,
        key: str | None = None,
    ) -> ReceiptView:
        """Take of a hold."""
        ...

    async def release(self, hold_id: str, *, key: str | None = None) -> ReceiptView:
        """Give back what is left of a hold."""
        ...

    async def extend(
        self,
        hold_id: str,
        *,
        expires_in_s: int | None = None,
        amount: int | None = None,
        key: str | None = None,
    ) -> ReceiptView:
        """Hold longer, more, or both."""
        ...

    async def refund(
        self,
        transaction_id: str,
        amount: int | None = None,
        *,
        description: str | None = None,
        key: str | None = None,
    ) -> ReceiptView:
        """Give back a consumption or a capture."""
        ...

    async def read_hold(self, hold_id: str) -> HoldView:
        """Return a hold."""
        ...

    def holds(self, account_id: str) -> AsyncIterator[HoldView]:
        """Yield the open holds of an account."""
        ...


HoldId = Annotated[str, typer.Argument(metavar="HOLD", help="Id of the hold.")]
Part = Annotated[
    int | None,
    typer.Argument(
        metavar="[AMOUNT]", min=1, max=MAX_AMOUNT_MINOR, help="In minor units; all without it."
    ),
]
Seconds = Annotated[
    int | None, typer.Option("--expires-in", min=1, help="Seconds from now until it expires.")
]


@app.command()
def hold(
    context: typer.Context,
    account_id: Account,
    amount: Amount,
    expires_in_s: Seconds = None,
    allowance: Annotated[
        int | None, typer.Option(min=0, help="Minor units that may be captured above it.")
    ] = None,
    description: Description = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Reserve credits for a time: an hour, unless --expires-in says otherwise."""
    terminal = terminal_of(context)
    receipt = terminal.call(
        lambda ledger: _holding(ledger).hold(
            account_id,
            amount,
            expires_in_s=expires_in_s,
            allowance=allowance,
            description=description,
            key=key,
        )
    )
    print_receipt(terminal, receipt, as_json=as_json)


@app.command()
def capture(
    context: typer.Context,
    hold_id: HoldId,
    amount: Part = None,
    final: Annotated[
        bool, typer.Option("--final", help="Give back what is left after it.")
    ] = False,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Take credits of a hold: all that is left, or AMOUNT."""
    terminal = terminal_of(context)
    receipt = terminal.call(
        lambda ledger: _holding(ledger).capture(hold_id, amount, final=final, key=key)
    )
    print_receipt(terminal, receipt, as_json=as_json)


@app.command()
def release(
    context: typer.Context, hold_id: HoldId, key: Key = None, as_json: AsJson = False
) -> None:
    """Give back what is left of a hold."""
    terminal = terminal_of(context)
    receipt = terminal.call(lambda ledger: _holding(ledger).release(hold_id, key=key))
    print_receipt(terminal, receipt, as_json=as_json)


@app.command()
def extend(
    context: typer.Context,
    hold_id: HoldId,
    expires_in_s: Seconds = None,
    amount: Annotated[
        int | None, typer.Option(min=1, max=MAX_AMOUNT_MINOR, help="Hold so much more.")
    ] = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Let a hold last longer from now, or hold more, or both."""
    if expires_in_s is None and amount is None:
        raise typer.BadParameter("give --expires-in, --amount, or both")
    terminal = terminal_of(context)
    receipt = terminal.call(
        lambda ledger: _holding(ledger).extend(
            hold_id, expires_in_s=expires_in_s, amount=amount, key=key
        )
    )
    print_receipt(terminal, receipt, as_json=as_json)


@app.command()
def refund(
    context: typer.Context,
    transaction_id: Annotated[
        str, typer.Argument(metavar="TRANSACTION", help="Id of the consumption or capture.")
    ],
    amount: Part = None,
    description: Description = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Give back a consumption or a capture, or a part of it; never more than it took."""
    terminal = terminal_of(context)
    receipt = terminal.call(
        lambda ledger: _holding(ledger).refund(
            transaction_id, amount, description=description, key=key
        )
    )
    print_receipt(terminal, receipt, as_json=as_json)


@app.command()
def holds(context: typer.Context, account_id: Account, as_json: AsJson = False) -> None:
    """List an account's open holds, oldest first; with --json one a line."""
    terminal = terminal_of(context)

    async def read(ledger: Ledger) -> list[HoldView]:
        return [each async for each in _holding(ledger).holds(account_id)]

    found = terminal.call(read)
    if as_json:
        terminal.json_lines(found)
        return
    rows = [
        (
            each.hold_id,
            f"{each.amount:,}",
            f"{each.captured:,}",
            f"{each.remaining:,}",
            moment_text(each.expires_at),
        )
        for each in found
    ]
    terminal.table(f"Open holds of {account_id}" if rows else "No open holds", _COLUMNS, rows)


@app.command("hold-status")
def hold_status(context: typer.Context, hold_id: HoldId, as_json: AsJson = False) -> None:
    """Show a hold as it is now."""
    terminal = terminal_of(context)
    found = terminal.call(lambda ledger: _holding(ledger).read_hold(hold_id))
    if as_json:
        terminal.json(found)
        return
    terminal.facts(
        f"Hold {found.hold_id}",
        (
            ("account", found.account_id),
            ("state", found.state),
            ("amount", f"{found.amount:,}"),
            ("captured", f"{found.captured:,}"),
            ("released", f"{found.released:,}"),
            ("remaining", f"{found.remaining:,}"),
            ("allowance", f"{found.allowance:,}, used {found.overrun:,}"),
            ("expires (UTC)", moment_text(found.expires_at)),
        ),
    )


def _holding(ledger: Ledger) -> HoldLedger:
    # The client is one object with all the calls; each module states those that it makes.
    return cast("HoldLedger", ledger)
