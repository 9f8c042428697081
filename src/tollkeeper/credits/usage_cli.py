"""`tollkeeper credits usage`: what an account or a tenant consumed, on the screen or into a file.

Adds its command to those of `freeze_cli.py`; importing this module is what puts it there.
"""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Protocol, TypedDict, Unpack, assert_never, cast

import typer

from tollkeeper.credits.cli import AsJson, Ledger, Terminal, terminal_of
from tollkeeper.credits.freeze_cli import app

__all__ = ["app"]


class Breakdown(StrEnum):
    """What usage is broken down by."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"
    FEATURE = "feature"


class TotalsView(Protocol):
    """What is printed of a sum."""

    @property
    def consumed(self) -> int: ...
    @property
    def purchased(self) -> int: ...
    @property
    def refunded(self) -> int: ...
    @property
    def net(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def mean(self) -> str | None: ...
    @property
    def peak_balance(self) -> int | None: ...
    @property
    def transactions(self) -> int: ...


class ItemView(TotalsView, Protocol):
    """What is printed of a bucket."""

    @property
    def start(self) -> datetime: ...
    @property
    def end(self) -> datetime: ...
    @property
    def feature(self) -> str | None: ...


class UsageView(Protocol):
    """What is printed of usage."""

    @property
    def tenant_id(self) -> str: ...
    @property
    def account_id(self) -> str | None: ...
    @property
    def start(self) -> datetime: ...
    @property
    def end(self) -> datetime: ...
    @property
    def time_zone(self) -> str: ...
    @property
    def totals(self) -> TotalsView: ...
    @property
    def items(self) -> Sequence[ItemView]: ...


class Terms(TypedDict):
    """What is asked for; None: as the service has it."""

    tenant_id: str | None
    start: str | None
    end: str | None
    by: str
    time_zone: str


class UsageLedger(Ledger, Protocol):
    """The calls this command makes."""

    async def usage(self, account_id: str | None, **terms: Unpack[Terms]) -> UsageView:
        """Return usage."""
        ...

    async def usage_file(
        self, account_id: str | None, *, kind: str, **terms: Unpack[Terms]
    ) -> bytes:
        """Return usage as a file."""
        ...


@app.command()
def usage(
    context: typer.Context,
    account_id: Annotated[
        str | None, typer.Argument(metavar="[ACCOUNT]", help="Id of the account.")
    ] = None,
    tenant: Annotated[
        str | None, typer.Option(help="All accounts of this tenant, instead of one.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", help="Date, or RFC 3339 moment at a quarter of an hour."),
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", help="The same; not part of it. Left out: until now.")
    ] = None,
    by: Annotated[Breakdown, typer.Option(help="What it is broken down by.")] = Breakdown.DAY,
    time_zone: Annotated[
        str, typer.Option(help="IANA name of the zone that days, months and dates are of.")
    ] = "UTC",
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: AsJson = False,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write CSV, or with --json JSON, there: whole or not."),
    ] = None,
) -> None:
    """Show what an account or a tenant consumed and purchased, exactly."""
    if (account_id is None) == (tenant is None):
        raise typer.BadParameter("give an ACCOUNT or --tenant, and not both")
    if as_csv and as_json:
        raise typer.BadParameter("give --csv or --json, and not both")
    terminal = terminal_of(context)
    terms = Terms(tenant_id=tenant, start=start, end=end, by=by.value, time_zone=time_zone)
    if not (as_csv or as_json or output):
        _print(
            terminal, terminal.call(lambda ledger: _metering(ledger).usage(account_id, **terms)), by
        )
        return
    kind = "json" if as_json else "csv"
    document = terminal.call(
        lambda ledger: _metering(ledger).usage_file(account_id, kind=kind, **terms)
    )
    if output is None:
        terminal.text(document.decode())
        return
    terminal.write(output, document)
    terminal.say(f"{output}: {len(document):,} bytes")


def _print(terminal: Terminal, found: UsageView, by: Breakdown) -> None:
    whose = f"account {found.account_id}" if found.account_id else f"tenant {found.tenant_id}"
    total = found.totals
    terminal.facts(
        f"Usage of {whose}",
        (
            ("from", found.start.isoformat()),
            ("to", found.end.isoformat()),
            ("consumed", _consumed(total)),
            ("refunded", f"{total.refunded:,} (net {total.net:,})"),
            ("purchased", f"{total.purchased:,}"),
            ("peak balance", _number(total.peak_balance)),
            ("transactions", f"{total.transactions:,}"),
        ),
    )
    if not found.items:
        terminal.facts("No transaction in this time", ())
        return
    name = "feature" if by is Breakdown.FEATURE else f"{by.value} ({found.time_zone})"
    columns = (name, "#consumed", "#count", "#mean", "#refunded", "#net", "#purchased", "#peak")
    terminal.table(f"By {by.value}", columns, [_row(item, by) for item in found.items])


def _row(item: ItemView, by: Breakdown) -> tuple[str, ...]:
    return (
        _name(item, by), f"{item.consumed:,}", f"{item.count:,}", item.mean or "-",
        f"{item.refunded:,}", f"{item.net:,}", f"{item.purchased:,}", _number(item.peak_balance),
    )  # fmt: skip


def _name(item: ItemView, by: Breakdown) -> str:
    """Name a bucket: its moments come in the zone that was asked for."""
    match by:
        case Breakdown.FEATURE:
            return item.feature or "(not said)"
        case Breakdown.HOUR:
            return item.start.strftime("%Y-%m-%d %H:%M")
        case Breakdown.DAY:
            return item.start.strftime("%Y-%m-%d")
        case Breakdown.MONTH:
            return item.start.strftime("%Y-%m")
        case _:
            assert_never(by)


def _consumed(total: TotalsView) -> str:
    if total.mean is None:
        return f"{total.consumed:,}"
    return f"{total.consumed:,} in {total.count:,}, on the average {total.mean}"


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _metering(ledger: Ledger) -> UsageLedger:
    return cast("UsageLedger", ledger)
