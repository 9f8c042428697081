"""`tollkeeper keys ...`: API keys for operators, one call of the public API each.

Knows neither HTTP nor where the service is: `tollkeeper.cli` puts a `KeyTerminal` into the context.
One command needs no service: `create --first` asks the database, as its owner, for the key that
makes the others.

A token goes to standard output, alone or in the JSON document, and everything about it elsewhere:
`KEY=$(tollkeeper keys create ...)` holds the token and nothing more.
"""
# ruff: noqa: D102 - the views' properties are the contract's fields and say what they are

import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Protocol, TypeVar

import typer

from tollkeeper.access.model import MAX_GRACE_S, MAX_LIFE_S
from tollkeeper.kernel.principal import Scope

PAGE_DEFAULT = 100
"""Keys or events that are shown at a time."""

PAGE_LIMIT = 1_000
"""Most of them that the service puts into a page."""

_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_DURATION = re.compile(r"([0-9]{1,10})([smhd]?)")

_Result = TypeVar("_Result")


class KeyView(Protocol):
    """What is printed of a key."""

    @property
    def key_id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def scopes(self) -> Sequence[str]: ...
    @property
    def tenant_id(self) -> str | None: ...
    @property
    def state(self) -> str: ...
    @property
    def created_at(self) -> datetime: ...
    @property
    def expires_at(self) -> datetime | None: ...
    @property
    def last_used_at(self) -> datetime | None: ...


class IssuedKeyView(KeyView, Protocol):
    """What is printed of a new key."""

    @property
    def token(self) -> str: ...


class KeyPageView(Protocol):
    """What is printed of a page of keys."""

    @property
    def items(self) -> Sequence[KeyView]: ...
    @property
    def next(self) -> str | None: ...


class EventView(Protocol):
    """What is printed of an event."""

    @property
    def sequence(self) -> int: ...
    @property
    def created_at(self) -> datetime: ...
    @property
    def kind(self) -> str: ...
    @property
    def actor(self) -> str: ...
    @property
    def key_id(self) -> str: ...
    @property
    def name(self) -> str: ...


class EventPageView(Protocol):
    """What is printed of a page of events."""

    @property
    def items(self) -> Sequence[EventView]: ...
    @property
    def next(self) -> str | None: ...


class Keys(Protocol):
    """The calls these commands make."""

    async def create_key(
        self,
        name: str,
        scopes: Sequence[str],
        *,
        tenant_id: str | None = None,
        expires_in_s: int | None = None,
    ) -> IssuedKeyView:
        """Make a key."""
        ...

    async def rotate_key(
        self, key_id: str, *, grace_s: int | None = None, expires_in_s: int | None = None
    ) -> IssuedKeyView:
        """Change a key for a new one."""
        ...

    async def revoke_key(self, key_id: str, *, force: bool = False) -> KeyView:
        """End a key."""
        ...

    async def keys(self, *, after: str | None = None, limit: int = ...) -> KeyPageView:
        """Return a page of keys."""
        ...

    async def key_events(self, *, after: str | None = None, limit: int = ...) -> EventPageView:
        """Return a page of events."""
        ...


class KeyTerminal(Protocol):
    """What `tollkeeper.cli` gives these commands: keys to work on, and a way to print."""

    def call_keys(self, work: Callable[[Keys], Awaitable[_Result]]) -> _Result:
        """Connect to the service, do the work, disconnect."""
        ...

    def first_key(self, name: str, *, expires_in_s: int | None, is_forced: bool) -> IssuedKeyView:
        """Make the first key, as the owner of the database of keys."""
        ...

    def say(self, text: str) -> None:
        """Print a sentence to standard error."""
        ...

    def json(self, document: object) -> None:
        """Print one JSON document to standard output."""
        ...

    def facts(self, title: str, facts: Sequence[tuple[str, str]]) -> None:
        """Print named facts below each other."""
        ...

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print rows; a column whose name starts with `#` holds numbers."""
        ...


def _seconds(text: str) -> int:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise typer.BadParameter("give seconds, or a number with s, m, h or d, such as 90d")
    return int(match[1]) * _SECONDS[match[2] or "s"]


def _life_of(text: str) -> int:
    seconds = _seconds(text)
    if not 1 <= seconds <= MAX_LIFE_S:
        raise typer.BadParameter(f"a key lives 1s to {MAX_LIFE_S // 86_400}d")
    return seconds


def _grace_of(text: str) -> int:
    seconds = _seconds(text)
    if seconds > MAX_GRACE_S:
        raise typer.BadParameter(f"a grace is 0 to {MAX_GRACE_S // 86_400}d")
    return seconds


app = typer.Typer(
    name="keys",
    help="Create, list, rotate and revoke API keys, over the HTTP API.",
    no_args_is_help=True,
)

KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", help="As `keys list` shows it.")]
Life = Annotated[
    int | None,
    typer.Option(
        "--expires-in",
        parser=_life_of,
        metavar="90d",
        help="How long it works (s, m, h, d); for ever if nothing is said.",
    ),
]
After = Annotated[str | None, typer.Option(help="Cursor printed by the page before.")]
Limit = Annotated[int, typer.Option(min=1, max=PAGE_LIMIT, help="Rows per page.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is for.")],
    scope: Annotated[
        list[Scope] | None, typer.Option(help="What it allows; may be given several times.")
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Bind it to this tenant.")] = None,
    expires_in_s: Life = None,
    first: Annotated[
        bool,
        typer.Option(
            "--first",
            help="Make the first key: scope admin, all tenants. Needs no key and no service, but "
            "the database of keys (TOLLKEEPER_ACCESS_DSN, or the local `up`) as its owner.",
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="With --first: even if there is such a key.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Create a key and print its token, once, to standard output."""
    terminal = _terminal_of(context)
    if first:
        if scope or tenant is not None:
            raise typer.BadParameter("the first key is for everything", param_hint="--first")
        issued = terminal.first_key(name, expires_in_s=expires_in_s, is_forced=force)
    else:
        if not scope:
            raise typer.BadParameter("name at least one", param_hint="--scope")
        if force:
            raise typer.BadParameter("it is for --first", param_hint="--force")
        names = [each.value for each in scope]
        issued = terminal.call_keys(
            lambda keys: keys.create_key(name, names, tenant_id=tenant, expires_in_s=expires_in_s)
        )
    _print_issued(terminal, issued, as_json=as_json)


@app.command("list")
def list_keys(
    context: typer.Context,
    after: After = None,
    limit: Limit = PAGE_DEFAULT,
    as_json: AsJson = False,
) -> None:
    """List keys, oldest first: revoked and expired ones too, tokens never."""
    terminal = _terminal_of(context)
    page = terminal.call_keys(lambda keys: keys.keys(after=after, limit=limit))
    if as_json:
        terminal.json(page)
        return
    columns = ("key", "state", "tenant", "scopes", "expires (UTC)", "last used (UTC)", "name")
    rows = [
        (
            key.key_id,
            key.state,
            key.tenant_id or "all",
            " ".join(key.scopes),
            _moment(key.expires_at, "never"),
            _moment(key.last_used_at, "never seen"),
            key.name,
        )
        for key in page.items
    ]
    terminal.table("API keys", columns, rows)
    _print_next(terminal, page.next)


@app.command()
def rotate(
    context: typer.Context,
    key_id: KeyId,
    grace_s: Annotated[
        int | None,
        typer.Option(
            "--grace",
            parser=_grace_of,
            metavar="24h",
            help="How long the old one goes on working (s, m, h, d), a day if nothing is said; "
            "0 ends it at once.",
        ),
    ] = None,
    expires_in_s: Life = None,
    as_json: AsJson = False,
) -> None:
    """Change a key for a new one, and print the new token, once, to standard output."""
    terminal = _terminal_of(context)
    issued = terminal.call_keys(
        lambda keys: keys.rotate_key(key_id, grace_s=grace_s, expires_in_s=expires_in_s)
    )
    _print_issued(terminal, issued, as_json=as_json)


@app.command()
def revoke(
    context: typer.Context,
    key_id: KeyId,
    force: Annotated[
        bool, typer.Option("--force", help="Even the last key that can administer all keys.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """End a key for good; every process refuses it within 5 seconds."""
    terminal = _terminal_of(context)
    key = terminal.call_keys(lambda keys: keys.revoke_key(key_id, force=force))
    if as_json:
        terminal.json(key)
        return
    _print_key(terminal, key)


@app.command()
def events(
    context: typer.Context,
    after: After = None,
    limit: Limit = PAGE_DEFAULT,
    as_json: AsJson = False,
) -> None:
    """List what was done to keys, and by whom, oldest first."""
    terminal = _terminal_of(context)
    page = terminal.call_keys(lambda keys: keys.key_events(after=after, limit=limit))
    if as_json:
        terminal.json(page)
        return
    rows = [
        (
            f"{event.sequence}",
            _moment(event.created_at, ""),
            event.kind,
            event.key_id,
            event.actor,
            event.name,
        )
        for event in page.items
    ]
    terminal.table("Key events", ("#sequence", "time (UTC)", "event", "key", "by", "name"), rows)
    _print_next(terminal, page.next)


def _terminal_of(context: typer.Context) -> KeyTerminal:
    terminal: KeyTerminal = context.obj
    return terminal


def _print_issued(terminal: KeyTerminal, issued: IssuedKeyView, *, as_json: bool) -> None:
    if as_json:
        terminal.json(issued)
        return
    tenant = f"tenant {issued.tenant_id}" if issued.tenant_id else "all tenants"
    terminal.say(
        f"Key {issued.key_id} ({issued.name}): {', '.join(issued.scopes)}, {tenant}, expires "
        f"{_moment(issued.expires_at, 'never')}. This is its token, shown this once:"
    )
    typer.echo(issued.token)


def _print_key(terminal: KeyTerminal, key: KeyView) -> None:
    terminal.facts(
        f"Key {key.key_id}",
        (
            ("name", key.name),
            ("state", key.state),
            ("scopes", ", ".join(key.scopes)),
            ("tenant", key.tenant_id or "all"),
            ("created (UTC)", _moment(key.created_at, "")),
            ("expires (UTC)", _moment(key.expires_at, "never")),
            ("last used (UTC)", _moment(key.last_used_at, "never seen")),
        ),
    )


def _print_next(terminal: KeyTerminal, cursor: str | None) -> None:
    if cursor is not None:
        terminal.facts("There is more", (("next page", f"--after {cursor}"),))


def _moment(moment: datetime | None, otherwise: str) -> str:
    if moment is None:
        return otherwise
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
