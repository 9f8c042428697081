"""What every command of the command line works with: settings, the service, the screen.

Imports neither server nor driver before a command needs them: `--help` is quick.
"""

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace
from enum import StrEnum
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from tollkeeper.config import Settings, check_session, read_settings, variable_of
from tollkeeper.kernel.errors import ConfigurationError

if TYPE_CHECKING:
    from tollkeeper.client.address import Address
    from tollkeeper.client.credits import CreditsClient
    from tollkeeper.client.database import DatabaseClient
    from tollkeeper.client.keys import KeysClient
    from tollkeeper.client.messages import IssuedKey
    from tollkeeper.client.shadow import ShadowClient
    from tollkeeper.client.terminal import Fact, Listing, Screen
    from tollkeeper.kernel.backoff import Backoff
    from tollkeeper.migrate.cli import Places
    from tollkeeper.migrate.equipment import Equipment
    from tollkeeper.migrate.report import Tell
    from tollkeeper.migrate.retention import Policy

_Result = TypeVar("_Result")


class Service(StrEnum):
    """Services that have a database."""

    CREDITS = "credits"
    ACCESS = "access"
    SHADOW = "shadow"
    LOCATOR = "locator"
    CDEFNET = "cdefnet"


class Face:
    """What every command works with; the only thing put into Typer's context.

    It is the `Terminal` of `credits/cli.py` and of `shadow/remote.py`, the `KeyTerminal` of
    `access/cli.py` and the `DatabaseTerminal` of `database/cli.py`. Everything is made when it is
    first needed.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def settings(
        self, *, data: Path | None = None, port: int | None = None, shadow_port: int | None = None
    ) -> Settings:
        """Return the settings, with what the command line says over the environment."""
        settings = read_settings(self._environment)
        if data is not None:
            settings = replace(settings, data=data)
        if port is not None:
            settings = replace(settings, credits_port=port)
        if shadow_port is not None:
            settings = replace(settings, shadow_port=shadow_port)
        return settings

    def connector(self, data: Path | None = None) -> "Callable[[int], CreditsClient]":
        """Return what connects to the service over so many connections."""
        address = address_of(self.settings(data=data), Service.CREDITS)
        return partial(connect_to, address.url, address.api_key)

    def call(self, work: "Callable[[CreditsClient], Awaitable[_Result]]") -> _Result:
        """Connect to the service, do the work, disconnect."""
        from tollkeeper.client.caller import IMPATIENT

        address = address_of(self.settings(), Service.CREDITS)

        async def connected() -> _Result:
            async with connect_to(address.url, address.api_key, 1, backoff=IMPATIENT) as client:
                return await work(client)

        return run(connected())

    def call_keys(self, work: "Callable[[KeysClient], Awaitable[_Result]]") -> _Result:
        """Connect to the service to administer keys, do the work, disconnect."""
        from tollkeeper.client.caller import IMPATIENT
        from tollkeeper.client.keys import KeysClient

        address = address_of(self.settings(), Service.CREDITS)

        async def connected() -> _Result:
            async with KeysClient(
                address.url, address.api_key, connections=1, backoff=IMPATIENT
            ) as client:
                return await work(client)

        return run(connected())

    def call_database(self, work: "Callable[[DatabaseClient], Awaitable[_Result]]") -> _Result:
        """Connect to the service to look at its databases, do the work, disconnect."""
        from tollkeeper.client.caller import IMPATIENT
        from tollkeeper.client.database import DatabaseClient

        address = address_of(self.settings(), Service.CREDITS)

        async def connected() -> _Result:
            async with DatabaseClient(
                address.url, address.api_key, connections=1, backoff=IMPATIENT
            ) as client:
                return await work(client)

        return run(connected())

    def call_shadow(self, work: "Callable[[ShadowClient], Awaitable[_Result]]") -> _Result:
        """Connect to the service of experiments, do the work, disconnect."""
        from tollkeeper.client.caller import IMPATIENT

        address = address_of(self.settings(), Service.SHADOW)

        async def connected() -> _Result:
            async with connect_to_shadow(
                address.url, address.api_key, 1, backoff=IMPATIENT
            ) as client:
                return await work(client)

        return run(connected())

    def first_key(self, name: str, *, expires_in_s: int | None, is_forced: bool) -> "IssuedKey":
        """Make the first key, as the owner of the database of keys."""
        from tollkeeper.client.messages import IssuedKey
        from tollkeeper.telemetry.logging import configure_logging
        from tollkeeper.wiring import create_first_key

        settings = self.settings()
        configure_logging("warning", settings.log_format)
        dsn = dsn_of(settings, Service.ACCESS)
        issued = run(
            create_first_key(
                dsn, name, expires_in_s=expires_in_s, is_forced=is_forced, pooler=settings.pooler
            )
        )
        key = issued.key
        return IssuedKey(
            key_id=str(key.key_id), name=key.name, scopes=key.scopes, state="active",
            created_at=key.created_at, expires_at=key.expires_at, token=issued.token,
        )  # fmt: skip

    def migrated_databases(self, names: Sequence[str]) -> "Places":
        """Return where databases are; of several, those that are configured.

        Raises:
            ConfigurationError: none is there, two are one, or a pooler is in between.
        """
        from tollkeeper.migrate.cli import Places

        settings = self.settings()
        check_session(settings, "`tollkeeper migrate`")
        named = [name for name in names if getattr(settings, f"{name}_dsn") is not None]
        # With no DSN at all it is the local one, which has all of them.
        chosen = named if named and len(names) > 1 else names
        dsns = {name: dsn_of(settings, Service(name)) for name in chosen}
        for one, other in combinations(dsns, 2):
            if dsns[one] == dsns[other]:
                raise ConfigurationError(
                    problem=f"{variable_of(f'{one}_dsn')} and {variable_of(f'{other}_dsn')} name "
                    "the same database: each needs one of its own."
                )
        return Places(dsns=dsns, left_out=tuple(name for name in names if name not in dsns))

    def backups(self) -> Path:
        """Return the folder of backups and logs of runs."""
        from tollkeeper.backups import folder_of

        return folder_of(self.settings())

    def equipment(self, log: "Tell", *, as_json: bool) -> "Equipment":
        """Return what backups are taken with, telling `log` and a progress bar."""
        from tollkeeper.backups import backup_equipment
        from tollkeeper.client.terminal import Bars

        return backup_equipment(
            self.settings(), self.backups(), log=log, progress=Bars(is_shown=not as_json)
        )

    def retention(self) -> "Policy":
        """Return how long backups are kept."""
        from tollkeeper.migrate.retention import Policy

        settings = self.settings()
        return Policy(days=settings.backup_days, minimum=settings.backup_minimum)

    def say(self, text: str) -> None:
        """Print a sentence to standard error."""
        from tollkeeper.client.escapes import visible

        with suppress(OSError):  # nobody may be listening any more: the work goes on
            typer.echo(visible(text), err=True)

    def say_toned(self, text: str, tone: str) -> None:
        """Print a sentence to standard error, in the colour of its tone where there are colours."""
        with suppress(OSError):  # as above
            self.screen().say(text, tone)

    def screen(self, *, as_json: bool = False) -> "Screen":
        """Return where output goes."""
        from tollkeeper.client.terminal import Screen

        return Screen(as_json=as_json)

    def clear(self) -> None:
        """Clear the screen, where standard output is one."""
        self.screen().clear()

    def json(self, document: object) -> None:
        """Print one JSON document to standard output."""
        self.screen(as_json=True).json(document)

    def json_lines(self, documents: Sequence[object]) -> None:
        """Print JSON documents to standard output, one a line."""
        self.screen(as_json=True).json_lines(documents)

    def text(self, text: str) -> None:
        """Print text to standard output as it is, but for what steers a terminal."""
        self.screen().text(text)

    def write(self, path: Path, document: bytes) -> None:
        """Write a file whole or not at all: beside it, synced, renamed.

        Raises:
            ConfigurationError: it cannot be written.
        """
        import os
        import tempfile

        beside: str | None = None
        try:
            number, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            with os.fdopen(number, "wb") as file:
                file.write(document)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)  # noqa: PTH105  # the name is a string
        except OSError as error:
            if beside is not None:
                with suppress(OSError):
                    Path(beside).unlink()
            problem = f"cannot write {path}: {(error.strerror or str(error)).lower()}."
            raise ConfigurationError(problem=problem) from error

    def facts(self, title: str, facts: "Sequence[Fact]") -> None:
        """Print named facts below each other."""
        self.screen().facts(title, facts)

    def table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        tones: Sequence[str] = (),
    ) -> None:
        """Print rows; a column whose name starts with `#` holds numbers; `tones` are the rows'."""
        self.screen().table(title, columns, rows, tones)

    def listing(self, title: str, columns: Sequence[str]) -> "Listing":
        """Return a table, of columns as above, that is printed as its rows come."""
        return self.screen().listing(title, columns)

    def is_plain(self) -> bool:
        """Whether standard output shows neither colours nor signs beyond letters."""
        return self.screen().is_plain

    def progress(
        self, title: str, *, done: "Callable[[], int]", total: int | None = None
    ) -> "AbstractAsyncContextManager[None]":
        """Show on standard error how much is done while the block runs."""
        return self.screen().progress(title, total=total, done=done, is_passing=True)


def connect_to(
    url: str, api_key: str, connections: int, *, backoff: "Backoff | None" = None
) -> "CreditsClient":
    """Return a client of a service."""
    from tollkeeper.client.caller import PATIENT
    from tollkeeper.client.credits import CreditsClient

    return CreditsClient(url, api_key, connections=connections, backoff=backoff or PATIENT)


def connect_to_shadow(
    url: str, api_key: str, connections: int, *, backoff: "Backoff | None" = None
) -> "ShadowClient":
    """Return a client of a service of experiments."""
    from tollkeeper.client.caller import PATIENT
    from tollkeeper.client.shadow import ShadowClient

    return ShadowClient(url, api_key, connections=connections, backoff=backoff or PATIENT)


def run(work: Coroutine[object, object, _Result]) -> _Result:
    """Run a coroutine on a fast event loop; Ctrl-C cancels it and raises KeyboardInterrupt."""
    import asyncio

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def address_of(settings: Settings, service: Service) -> "Address":
    """Return where a service is, and the key for it: as configured, or the local one.

    Raises:
        ConfigurationError: half of it is configured, or nothing runs here.
    """
    from tollkeeper.client.address import Address, find_local

    name = "shadow_url" if service is Service.SHADOW else "url"
    url: str | None = getattr(settings, name)
    if url is None and settings.api_key is None:
        return find_local(settings.data, name)
    if url is None or settings.api_key is None:
        raise ConfigurationError(
            problem=f"{variable_of(name)} and TOLLKEEPER_API_KEY belong together: set both or "
            "neither."
        )
    return Address(url=url, api_key=settings.api_key)


def dsn_of(settings: Settings, service: Service) -> str:
    """Return where a service's database is: as configured, or the local one.

    Raises:
        ConfigurationError: neither is there.
    """
    configured: str | None = getattr(settings, f"{service.value}_dsn")
    if configured is not None:
        return configured
    from tollkeeper.database.embedded import dsn_at, holder_of, is_listening

    holder = holder_of(settings.data)
    if holder is None or holder.socket is None or not is_listening(holder.socket):
        raise ConfigurationError(
            problem=f"no database runs in {settings.data}: start it with `tollkeeper up`, or set "
            f"TOLLKEEPER_{service.value.upper()}_DSN."
        )
    return dsn_at(holder.socket, service.value)
