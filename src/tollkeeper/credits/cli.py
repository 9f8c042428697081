"""`tollkeeper credits ...`: operator commands, one call of the public API each.

Knows neither HTTP nor where the service is: `tollkeeper.cli` puts a `Terminal` into the context,
which runs work against a ledger and prints what came of it. The protocols below are all that these
commands need of it.
"""
# ruff: noqa: D102 - the views' properties are the contract's fields and say what they are

import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Protocol, TypeVar

import typer

from tollkeeper.kernel.amounts import MAX_AMOUNT_MINOR

PAGE_DEFAULT = 50
"""Transactions that `history` shows at a time."""

PAGE_LIMIT = 1_000
"""Most transactions that the service puts into a page."""

_HISTORY_COLUMNS = ("#sequence", "time (UTC)", "kind", "#amount", "#balance", "description")

_Result = TypeVar("_Result")
_Item = TypeVar("_Item", covariant=True)  # noqa: PLC0105  # called like `_Result`


class AccountView(Protocol):
    """What is printed of an account."""

    @property
    def account_id(self) -> str: ...
    @property
    def tenant_id(self) -> str: ...
    @property
    def balance(self) -> int: ...
    @property
    def reserved(self) -> int: ...
    @property
    def available(self) -> int: ...
    @property
    def version(self) -> int: ...
    @property
    def head_hash(self) -> str: ...
    @property
    def created_at(self) -> datetime: ...
    @property
    def frozen_at(self) -> datetime | None: ...


class TransactionView(Protocol):
    """What is printed of a transaction."""

    @property
    def transaction_id(self) -> str: ...
    @property
    def account_id(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def amount(self) -> int: ...
    @property
    def balance(self) -> int: ...
    @property
    def available(self) -> int: ...
    @property
    def sequence(self) -> int: ...
    @property
    def created_at(self) -> datetime: ...
    @property
    def description(self) -> str | None: ...
    @property
    def hold_id(self) -> str | None: ...


class ReceiptView(Protocol):
    """What is printed of a money write."""

    @property
    def transaction(self) -> TransactionView: ...
    @property
    def replayed(self) -> bool: ...


class PageView(Protocol[_Item]):
    """What is printed of a page, and the cursor of the one behind it."""

    @property
    def items(self) -> Sequence[_Item]: ...
    @property
    def next(self) -> str | None: ...


class Ledger(Protocol):
    """The calls these commands make."""

    async def open_account(self, account_id: str, tenant_id: str) -> AccountView:
        """Open an account."""
        ...

    async def account(self, account_id: str) -> AccountView:
        """Return an account."""
        ...

    async def topup(
        self,
        account_id: str,
        amount: int,
        *,
        description: str | None = None,
        metadata: Mapping[str, object] | None = None,
        payment: Mapping[str, object] | None = None,
        key: str | None = None,
    ) -> ReceiptView:
        """Add credits."""
        ...

    async def consume(
        self,
        account_id: str,
        amount: int,
        *,
        up_to: bool = False,
        description: str | None = None,
        metadata: Mapping[str, object] | None = None,
        key: str | None = None,
    ) -> ReceiptView:
        """Take credits."""
        ...

    async def page(
        self, account_id: str, *, after: str | None = None, limit: int = ...
    ) -> PageView[TransactionView]:
        """Return a page of history."""
        ...


class Listing(Protocol):
    """A table that is printed as its rows come."""

    def add(self, rows: Sequence[Sequence[str]]) -> None:
        """Print rows below those before."""
        ...


Fact = tuple[str, str] | tuple[str, str, str]
"""A name, a value, and where it matters whether that is `good`, `bad` or a warning (`warn`)."""


class Terminal(Protocol):
    """What `tollkeeper.cli` gives these commands: a ledger to work on, and a way to print."""

    def call(self, work: Callable[[Ledger], Awaitable[_Result]]) -> _Result:
        """Connect to the service, do the work, disconnect."""
        ...

    def json(self, document: object) -> None:
        """Print one JSON document to standard output."""
        ...

    def say(self, text: str) -> None:
        """Print a sentence to standard error."""
        ...

    def text(self, text: str) -> None:
        """Print text to standard output as it is."""
        ...

    def write(self, path: Path, document: bytes) -> None:
        """Write a file whole or not at all."""
        ...

    def json_lines(self, documents: Sequence[object]) -> None:
        """Print JSON documents to standard output, one a line."""
        ...

    def facts(self, title: str, facts: Sequence[Fact]) -> None:
        """Print named facts below each other."""
        ...

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print rows; a column whose name starts with `#` holds numbers."""
        ...

    def listing(self, title: str, columns: Sequence[str]) -> Listing:
        """Return a table, of columns as above, that is printed as its rows come."""
        ...

    def progress(self, title: str, *, done: Callable[[], int]) -> AbstractAsyncContextManager[None]:
        """Show on standard error how much is done while the block runs."""
        ...


app = typer.Typer(
    name="credits",
    help="Open accounts, top up, consume, read and verify, over the HTTP API.",
    no_args_is_help=True,
)

Account = Annotated[str, typer.Argument(metavar="ACCOUNT", help="Id of the account.")]
Amount = Annotated[
    int, typer.Argument(metavar="AMOUNT", min=1, max=MAX_AMOUNT_MINOR, help="In minor units.")
]
Key = Annotated[
    str | None,
    typer.Option(help="Idempotency key; give the one of an earlier try to repeat it safely."),
]
Description = Annotated[str | None, typer.Option(help="Free text kept with the transaction.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.command("open")
def open_account(
    context: typer.Context,
    account_id: Account,
    tenant: Annotated[str, typer.Option(help="Id of the tenant that owns the account.")],
    as_json: AsJson = False,
) -> None:
    """Open an account; one that the tenant has already is returned as it is."""
    terminal = terminal_of(context)
    account = terminal.call(lambda ledger: ledger.open_account(account_id, tenant))
    _print_account(terminal, account, as_json=as_json)


@app.command()
def topup(
    context: typer.Context,
    account_id: Account,
    amount: Amount,
    description: Description = None,
    payment: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|-|JSON",
            help="A JSON object about the payment, from a file, standard input, or as it stands. "
            "The service masks card numbers and drops CVVs before it keeps any of it; what is "
            "typed here, the shell's history keeps: prefer a file or -.",
        ),
    ] = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Add credits to an account."""
    terminal = terminal_of(context)
    paid = None if payment is None else _payment_of(payment)
    receipt = terminal.call(
        lambda ledger: ledger.topup(
            account_id, amount, description=description, payment=paid, key=key
        )
    )
    print_receipt(terminal, receipt, as_json=as_json)


@app.command()
def consume(
    context: typer.Context,
    account_id: Account,
    amount: Amount,
    up_to: Annotated[
        bool, typer.Option("--up-to", help="Take what is available when it is less.")
    ] = False,
    description: Description = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Take credits from an account; refused (exit 3) when it has not enough."""
    terminal = terminal_of(context)
    receipt = terminal.call(
        lambda ledger: ledger.consume(
            account_id, amount, up_to=up_to, description=description, key=key
        )
    )
    print_receipt(terminal, receipt, as_json=as_json)


@app.command()
def balance(context: typer.Context, account_id: Account, as_json: AsJson = False) -> None:
    """Show an account as it is now."""
    terminal = terminal_of(context)
    account = terminal.call(lambda ledger: ledger.account(account_id))
    _print_account(terminal, account, as_json=as_json)


@app.command()
def history(
    context: typer.Context,
    account_id: Account,
    limit: Annotated[
        int | None,
        typer.Option(min=1, max=PAGE_LIMIT, help="Transactions per page; 50, or 1000 with --all."),
    ] = None,
    after: Annotated[str | None, typer.Option(help="Cursor printed by the page before.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All pages; with --json, one transaction a line.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List an account's transactions, oldest first."""
    terminal = terminal_of(context)
    size = limit or (PAGE_LIMIT if everything else PAGE_DEFAULT)
    if as_json and not everything:
        page = terminal.call(lambda ledger: ledger.page(account_id, after=after, limit=size))
        terminal.json(page)
        return
    print_pages(
        terminal,
        lambda ledger, behind: ledger.page(account_id, after=behind, limit=size),
        terminal.json_lines if as_json else _history_table(terminal, account_id),
        after=after,
        everything=everything,
    )


def print_pages(
    terminal: Terminal,
    read: Callable[[Ledger, str | None], Awaitable[PageView[_Item]]],
    show: Callable[[Sequence[_Item]], None],
    *,
    after: str | None,
    everything: bool,
) -> None:
    """Print the page behind a cursor, or all pages: as they come, there may be more than memory."""

    async def each(ledger: Ledger) -> str | None:
        page = await read(ledger, after)
        show(page.items)
        while everything and page.next is not None:
            page = await read(ledger, page.next)
            show(page.items)
        return page.next

    cursor = terminal.call(each)
    if cursor is not None:
        terminal.facts("There is more", (("next page", f"--after {cursor}"),))


def terminal_of(context: typer.Context) -> Terminal:
    """Return what a command prints with and calls through."""
    terminal: Terminal = context.obj
    return terminal


def _payment_of(source: str) -> dict[str, object]:
    """Read the JSON object that `--payment` means; a fault does not repeat a word of it."""
    try:
        if source == "-":
            text = sys.stdin.read()
        elif source.lstrip().startswith("{"):
            text = source
        else:
            text = Path(source).read_text(encoding="utf-8")
        payment = json.loads(text)
    except OSError as error:
        raise _not_a_payment(f"cannot read the file: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise _not_a_payment("is not JSON in UTF-8") from error
    if not isinstance(payment, dict):
        raise _not_a_payment("is not a JSON object")
    return payment


def _not_a_payment(fault: str) -> typer.BadParameter:
    return typer.BadParameter(fault, param_hint="--payment")


def _history_table(
    terminal: Terminal, account_id: str
) -> Callable[[Sequence[TransactionView]], None]:
    """Return what prints transactions below those before."""
    listing = terminal.listing(f"Transactions of {account_id}", _HISTORY_COLUMNS)

    def show(items: Sequence[TransactionView]) -> None:
        listing.add(
            [
                (
                    f"{item.sequence:,}",
                    moment_text(item.created_at),
                    item.kind,
                    f"{item.amount:,}",
                    f"{item.balance:,}",
                    item.description or "",
                )
                for item in items
            ]
        )

    return show


def _print_account(terminal: Terminal, account: AccountView, *, as_json: bool) -> None:
    if as_json:
        terminal.json(account)
        return
    frozen_at = account.frozen_at
    frozen = () if frozen_at is None else (("frozen since", moment_text(frozen_at), "bad"),)
    terminal.facts(
        f"Account {account.account_id}",
        (
            *frozen,
            ("tenant", account.tenant_id),
            ("balance", f"{account.balance:,}"),
            ("reserved", f"{account.reserved:,}"),
            ("available", f"{account.available:,}"),
            ("version", f"{account.version:,}"),
            ("head hash", account.head_hash),
            ("opened (UTC)", moment_text(account.created_at)),
        ),
    )


def print_receipt(terminal: Terminal, receipt: ReceiptView, *, as_json: bool) -> None:
    """Print what a money write did."""
    if as_json:
        terminal.json(receipt)
        return
    transaction = receipt.transaction
    hold = (("hold", transaction.hold_id),) if transaction.hold_id is not None else ()
    replay = " (replayed: this key had its effect before)" if receipt.replayed else ""
    terminal.facts(
        f"Transaction {transaction.transaction_id}",
        (
            ("account", transaction.account_id),
            *hold,
            (transaction.kind, f"{transaction.amount:,}{replay}"),
            ("balance after", f"{transaction.balance:,}"),
            ("available after", f"{transaction.available:,}"),
            ("sequence", f"{transaction.sequence:,}"),
            ("time (UTC)", moment_text(transaction.created_at)),
        ),
    )


def moment_text(moment: datetime) -> str:
    """Return a moment as people read it: UTC, to the millisecond."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
