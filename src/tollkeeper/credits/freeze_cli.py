"""`tollkeeper credits frozen|unfreeze`: accounts that were found wrong, and letting them go on.

Adds its commands to those of `hold_cli.py`; importing this module is what puts them there.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, Protocol, cast

import typer

from tollkeeper.credits.cli import (
    PAGE_DEFAULT,
    PAGE_LIMIT,
    Account,
    AsJson,
    Key,
    Ledger,
    PageView,
    ReceiptView,
    Terminal,
    TransactionView,
    moment_text,
    print_pages,
    print_receipt,
    terminal_of,
)
from tollkeeper.credits.hold_cli import app

__all__ = ["app"]


class FaultView(Protocol):
    """What is printed of a fault."""

    @property
    def sequence(self) -> int: ...
    @property
    def fault(self) -> str: ...


class FrozenView(Protocol):
    """What is printed of a frozen account."""

    @property
    def account_id(self) -> str: ...
    @property
    def tenant_id(self) -> str | None: ...
    @property
    def frozen_at(self) -> datetime: ...
    @property
    def faults(self) -> Sequence[FaultView]: ...
    @property
    def evidence(self) -> str | None: ...
    @property
    def evidence_problem(self) -> str | None: ...


class LiftedView(TransactionView, Protocol):
    """What is printed of a lifting."""

    @property
    def faults(self) -> Sequence[FaultView] | None: ...


class LiftedReceiptView(ReceiptView, Protocol):
    """What is printed of a lifting's answer."""

    @property
    def transaction(self) -> LiftedView: ...


class FreezeLedger(Ledger, Protocol):
    """The calls these commands make."""

    async def unfreeze(
        self, account_id: str, reason: str, *, key: str | None = None
    ) -> LiftedReceiptView:
        """Lift a freeze."""
        ...

    async def frozen(self, *, after: str | None = None, limit: int = ...) -> PageView[FrozenView]:
        """Return a page of frozen accounts."""
        ...


@app.command()
def unfreeze(
    context: typer.Context,
    account_id: Account,
    reason: Annotated[str, typer.Option(help="Why; kept for ever in the account's chain.")],
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Lift the freeze of an account: it goes on from where its chain ends."""
    if not reason.strip():
        raise typer.BadParameter("say why the freeze is lifted", param_hint="--reason")
    terminal = terminal_of(context)
    receipt = terminal.call(lambda ledger: _freezing(ledger).unfreeze(account_id, reason, key=key))
    print_receipt(terminal, receipt, as_json=as_json)
    faults = receipt.transaction.faults
    if as_json or faults == ():
        return
    found = _found(faults) if faults else "not looked at: a verification is running"
    terminal.facts(
        "Lifted, and not whole",
        (
            ("still wrong" if faults else "still wrong?", found, "warn"),
            ("see", f"tollkeeper credits verify {account_id}"),
        ),
    )


@app.command()
def frozen(
    context: typer.Context,
    limit: Annotated[
        int | None,
        typer.Option(min=1, max=PAGE_LIMIT, help="Accounts per page; 50, or 1000 with --all."),
    ] = None,
    after: Annotated[str | None, typer.Option(help="Cursor printed by the page before.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All pages; with --json, one account a line.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the accounts that are frozen, the longest frozen first."""
    terminal = terminal_of(context)
    size = limit or (PAGE_LIMIT if everything else PAGE_DEFAULT)
    if as_json and not everything:
        page = terminal.call(lambda ledger: _freezing(ledger).frozen(after=after, limit=size))
        terminal.json(page)
        return
    print_pages(
        terminal,
        lambda ledger, behind: _freezing(ledger).frozen(after=behind, limit=size),
        terminal.json_lines if as_json else _shown(terminal),
        after=after,
        everything=everything,
    )


def _shown(terminal: Terminal) -> Callable[[Sequence[FrozenView]], None]:
    """Return what prints frozen accounts: below each other, since names of evidence are long."""

    def show(items: Sequence[FrozenView]) -> None:
        if not items:
            terminal.facts("No account is frozen", ())
        for item in items:
            terminal.facts(
                item.account_id,
                (
                    ("tenant", item.tenant_id)
                    if item.tenant_id
                    else ("tenant", "unknown: the account's row is gone", "bad"),
                    ("frozen since (UTC)", moment_text(item.frozen_at)),
                    ("found", _found(item.faults)),
                    ("evidence", item.evidence or f"none: {item.evidence_problem}"),
                ),
            )

    return show


def _found(faults: Sequence[FaultView]) -> str:
    if not faults:
        return "-"
    first = faults[0]
    place = f"transaction {first.sequence:,}" if first.sequence else "the account"
    more = f" and {len(faults) - 1:,} more" if len(faults) > 1 else ""
    return f"{first.fault} of {place}{more}"


def _freezing(ledger: Ledger) -> FreezeLedger:
    return cast("FreezeLedger", ledger)
