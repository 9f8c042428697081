"""`tollkeeper credits alerts set|show|list|acknowledge`: being told that credits run low.

`tollkeeper.cli` puts them below `credits`.
"""
# ruff: noqa: D102 - the views' properties are the contract's fields and say what they are

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Protocol, cast

import typer

from tollkeeper.credits.cli import (
    PAGE_DEFAULT,
    PAGE_LIMIT,
    Account,
    AsJson,
    Ledger,
    PageView,
    Terminal,
    moment_text,
    print_pages,
    terminal_of,
)
from tollkeeper.kernel.amounts import MAX_AMOUNT_MINOR

_THRESHOLD_COLUMNS = ("#threshold", "#armed again at", "state", "last fired (UTC)")
_ALERT_COLUMNS = ("alert", "account", "fired (UTC)", "#threshold", "#available", "state")


class State(StrEnum):
    """Which alerts `list` shows."""

    OPEN = "open"
    ACKNOWLEDGED = "acknowledged"
    REARMED = "rearmed"
    ALL = "all"


class ThresholdView(Protocol):
    """What is printed of a threshold."""

    @property
    def threshold(self) -> int: ...
    @property
    def hysteresis(self) -> int: ...
    @property
    def state(self) -> str: ...
    @property
    def last_fired_at(self) -> datetime | None: ...


class AccountAlertsView(Protocol):
    """What is printed of an account's thresholds."""

    @property
    def account_id(self) -> str: ...
    @property
    def available(self) -> int: ...
    @property
    def alerts(self) -> Sequence[ThresholdView]: ...


class AlertView(Protocol):
    """What is printed of an alert."""

    @property
    def alert_id(self) -> str: ...
    @property
    def account_id(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def threshold(self) -> int: ...
    @property
    def available(self) -> int: ...
    @property
    def fired_at(self) -> datetime: ...
    @property
    def acknowledged_at(self) -> datetime | None: ...
    @property
    def note(self) -> str | None: ...


class AlertLedger(Ledger, Protocol):
    """The calls these commands make."""

    async def set_alerts(
        self, account_id: str, thresholds: Mapping[int, int | None]
    ) -> AccountAlertsView:
        """Replace an account's thresholds."""
        ...

    async def alerts_of(self, account_id: str) -> AccountAlertsView:
        """Return an account's thresholds."""
        ...

    async def alerts(
        self,
        *,
        state: str = ...,
        account_id: str | None = None,
        tenant_id: str | None = None,
        after: str | None = None,
        limit: int = ...,
    ) -> PageView[AlertView]:
        """Return a page of alerts."""
        ...

    async def acknowledge_alert(self, alert_id: str, *, note: str | None = None) -> AlertView:
        """Acknowledge an alert."""
        ...


alerts_app = typer.Typer(
    name="alerts",
    help="Set at which credits available an account's alerts fire, and see what fired.",
    no_args_is_help=True,
)


@alerts_app.command("set")
def set_alerts(
    context: typer.Context,
    account_id: Account,
    thresholds: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[THRESHOLD[:HYSTERESIS]]...",
            help="Fires when less is available, in minor units; armed again when the hysteresis "
            "more is (a tenth, unless given). None: the account has no alerts any more.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Let an account have these alerts and no others."""
    wanted = _thresholds_of(thresholds or [])
    terminal = terminal_of(context)
    shown = terminal.call(lambda ledger: _alerting(ledger).set_alerts(account_id, wanted))
    _print_thresholds(terminal, shown, as_json=as_json)


@alerts_app.command()
def show(context: typer.Context, account_id: Account, as_json: AsJson = False) -> None:
    """Show the alerts of an account and how each stands."""
    terminal = terminal_of(context)
    shown = terminal.call(lambda ledger: _alerting(ledger).alerts_of(account_id))
    _print_thresholds(terminal, shown, as_json=as_json)


@alerts_app.command("list")
def list_alerts(
    context: typer.Context,
    state: Annotated[State, typer.Option(help="Which of them.")] = State.OPEN,
    account: Annotated[str | None, typer.Option(help="Of this account alone.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Of this tenant alone.")] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, max=PAGE_LIMIT, help="Alerts per page; 50, or 1000 with --all."),
    ] = None,
    after: Annotated[str | None, typer.Option(help="Cursor printed by the page before.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All pages; with --json, one alert a line.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the alerts that fired, oldest first."""
    terminal = terminal_of(context)
    size = limit or (PAGE_LIMIT if everything else PAGE_DEFAULT)

    async def read(ledger: Ledger, behind: str | None) -> PageView[AlertView]:
        return await _alerting(ledger).alerts(
            state=state, account_id=account, tenant_id=tenant, after=behind, limit=size
        )

    if as_json and not everything:
        terminal.json(terminal.call(lambda ledger: read(ledger, after)))
        return
    print_pages(
        terminal,
        read,
        terminal.json_lines if as_json else _alert_table(terminal, state),
        after=after,
        everything=everything,
    )


@alerts_app.command()
def acknowledge(
    context: typer.Context,
    alert_id: Annotated[str, typer.Argument(metavar="ALERT", help="Id of the alert.")],
    note: Annotated[str | None, typer.Option(help="What is done about it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say that you know of an alert: it is not open any more."""
    terminal = terminal_of(context)
    alert = terminal.call(lambda ledger: _alerting(ledger).acknowledge_alert(alert_id, note=note))
    if as_json:
        terminal.json(alert)
        return
    known_since = alert.acknowledged_at
    terminal.facts(
        f"Alert {alert.alert_id}",
        (
            ("account", alert.account_id),
            ("state", alert.state, _tone_of(alert.state)),
            ("available", f"{alert.available:,} of at least {alert.threshold:,}"),
            ("acknowledged (UTC)", "-" if known_since is None else moment_text(known_since)),
            ("note", alert.note or "-"),
        ),
    )


def _thresholds_of(words: Sequence[str]) -> dict[int, int | None]:
    found: dict[int, int | None] = {}
    for word in words:
        threshold, colon, hysteresis = word.partition(":")
        amount = _amount_of(word, threshold, least=1)
        if amount in found:
            raise _bad(f"{amount} is there twice")
        found[amount] = _amount_of(word, hysteresis, least=0) if colon else None
    return found


def _amount_of(word: str, text: str, *, least: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_AMOUNT_MINOR))):
        raise _bad(f"{word!r} is not THRESHOLD or THRESHOLD:HYSTERESIS in minor units")
    if not least <= int(text) <= MAX_AMOUNT_MINOR:
        raise _bad(f"{text} in {word!r} is not from {least} to {MAX_AMOUNT_MINOR}")
    return int(text)


def _bad(fault: str) -> typer.BadParameter:
    return typer.BadParameter(fault, param_hint="THRESHOLD")


def _print_thresholds(terminal: Terminal, shown: AccountAlertsView, *, as_json: bool) -> None:
    if as_json:
        terminal.json(shown)
        return
    if not shown.alerts:
        terminal.facts(
            f"Account {shown.account_id} has no alerts", (("available", f"{shown.available:,}"),)
        )
        return
    terminal.table(
        f"Alerts of {shown.account_id}, {shown.available:,} available",
        _THRESHOLD_COLUMNS,
        [
            (
                f"{each.threshold:,}",
                f"{each.threshold + each.hysteresis:,}",
                each.state,
                "-" if each.last_fired_at is None else moment_text(each.last_fired_at),
            )
            for each in shown.alerts
        ],
    )


def _alert_table(terminal: Terminal, state: State) -> Callable[[Sequence[AlertView]], None]:
    """Return what prints alerts below those before."""
    which = "Alerts" if state is State.ALL else f"Alerts that are {state}"
    listing = terminal.listing(which, _ALERT_COLUMNS)

    def show(items: Sequence[AlertView]) -> None:
        listing.add(
            [
                (
                    item.alert_id,
                    item.account_id,
                    moment_text(item.fired_at),
                    f"{item.threshold:,}",
                    f"{item.available:,}",
                    item.state,
                )
                for item in items
            ]
        )

    return show


def _tone_of(state: str) -> str:
    return "bad" if state == State.OPEN else "warn" if state == State.ACKNOWLEDGED else "good"


def _alerting(ledger: Ledger) -> AlertLedger:
    return cast("AlertLedger", ledger)
