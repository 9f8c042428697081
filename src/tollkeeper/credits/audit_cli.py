"""`tollkeeper credits verify|prove` and `tollkeeper checkpoints ...`: what an auditor types.

Adds its commands to those of `cli.py`; importing this module is what puts them there. Checkpoints
are judged here, on the auditor's side (`audit.py`); the service only answers questions.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Protocol, TypeVar, cast

import typer

from tollkeeper.credits.cli import AsJson, Ledger, PageView, Terminal, app, terminal_of
from tollkeeper.kernel.errors import ConfigurationError, TollkeeperError

if TYPE_CHECKING:
    from tollkeeper.credits.audit import AuditedLedger, AuditFindings
    from tollkeeper.credits.note import VerifyingKey

__all__ = ["app", "checkpoints_app"]

FAULTS_EXIT = 4
"""Exit code of `verify` when it found faults."""

PUBLISHING_S = 3
"""Seconds that a checkpoint which was made just now may take to reach the file."""

LIST_DEFAULT = 50
"""Checkpoints that `list` shows."""

LIST_LIMIT = 1_000

_Result = TypeVar("_Result")


@dataclass(eq=False, kw_only=True)
class StoppedAfterFaults(TollkeeperError):
    """Verification ended early, and what it had seen is wrong: exits as faults do."""

    failure: TollkeeperError

    def message(self) -> str:
        return str(self.failure)


checkpoints_app = typer.Typer(
    name="checkpoints",
    help="Signed checkpoints of the ledger: their key, and which there are.",
    no_args_is_help=True,
)


class FaultView(Protocol):
    """What is printed of a fault."""

    @property
    def account_id(self) -> str | None: ...
    @property
    def sequence(self) -> int: ...
    @property
    def fault(self) -> str: ...
    @property
    def detail(self) -> str: ...


class VerificationView(Protocol):
    """What is printed of a verification."""

    @property
    def accounts(self) -> int: ...
    @property
    def transactions(self) -> int: ...
    @property
    def topped_up(self) -> int: ...
    @property
    def consumed(self) -> int: ...
    @property
    def balance(self) -> int: ...
    @property
    def faults(self) -> Sequence[FaultView]: ...
    @property
    def more_faults(self) -> bool: ...
    @property
    def next(self) -> str | None: ...


class CheckpointView(Protocol):
    """What is printed of a checkpoint."""

    @property
    def number(self) -> int: ...
    @property
    def note(self) -> str: ...


class LeafView(Protocol):
    """The head of an account under a checkpoint."""

    @property
    def sequence(self) -> int: ...


class ProofView(Protocol):
    """What is printed of a proof."""

    @property
    def transaction_id(self) -> str: ...
    @property
    def account_id(self) -> str: ...
    @property
    def sequence(self) -> int: ...
    @property
    def links(self) -> Sequence[object]: ...
    @property
    def leaf(self) -> LeafView: ...
    @property
    def checkpoint(self) -> int: ...
    @property
    def made_at(self) -> str: ...
    @property
    def path(self) -> Sequence[object]: ...
    @property
    def note(self) -> str: ...


class AuditLedger(Ledger, Protocol):
    """The calls these commands make."""

    async def verify(
        self,
        account_id: str | None = None,
        *,
        watch: Callable[[VerificationView], None] = ...,
    ) -> VerificationView:
        """Check one account, or all; `watch` is told how far it is."""
        ...

    async def checkpoints(self, *, after: int = ..., limit: int = ...) -> PageView[CheckpointView]:
        """Return a page of checkpoints."""
        ...

    async def prove(self, transaction_id: str) -> ProofView:
        """Return the proof of a transaction."""
        ...


@app.command()
def verify(
    context: typer.Context,
    account_id: Annotated[
        str | None, typer.Argument(metavar="[ACCOUNT]", help="One account; all without it.")
    ] = None,
    checkpoints: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Hold the ledger to the checkpoints published here."),
    ] = None,
    public_key: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="Who signed them: a public key, or a file of some."),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="FILE is an older copy: it may end early.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check hash chains, balances, holds and refunds; exit 4 when something is wrong.

    With --checkpoints also against what was signed and published before: a chain that was cut, or
    rewritten so that it holds in itself, is found. A verification that fails on its way shows what
    it has found.
    """
    terminal = terminal_of(context)
    if checkpoints is None and (public_key or partial):
        raise typer.BadParameter("belongs to --checkpoints", param_hint="--public-key, --partial")
    if checkpoints is not None and account_id is not None:
        raise typer.BadParameter("covers all accounts: leave ACCOUNT out", param_hint="checkpoints")
    audited: AuditFindings | None = None
    if checkpoints is not None:
        audited = _audit(terminal, checkpoints, public_key or [], is_partial=partial)
    found, failure = _call(
        terminal, lambda ledger: _verified(terminal, ledger, account_id, as_json=as_json)
    )
    _show(terminal, found, audited, as_json=as_json)
    is_wrong = bool(found.faults or (audited is not None and audited.faults))
    if failure is not None:
        raise StoppedAfterFaults(failure=failure) if is_wrong else failure
    if is_wrong:
        raise typer.Exit(FAULTS_EXIT)


@app.command()
def prove(
    context: typer.Context,
    transaction_id: Annotated[
        str, typer.Argument(metavar="TRANSACTION", help="Id of the transaction.")
    ],
    as_json: AsJson = False,
) -> None:
    """Prove that a transaction is under a signed checkpoint; --json is what a checker reads."""
    terminal = terminal_of(context)
    proof = _call(terminal, lambda ledger: ledger.prove(transaction_id))
    if as_json:
        terminal.json(proof)
        return
    note = proof.note.rstrip("\n").split("\n")
    terminal.facts(
        f"Transaction {proof.transaction_id} is under a signed checkpoint",
        (
            ("account", proof.account_id),
            ("sequence", f"{proof.sequence:,}"),
            ("covered up to", f"{proof.leaf.sequence:,}, {len(proof.links):,} links further"),
            ("checkpoint", f"{proof.checkpoint:,} of {proof.made_at}"),
            ("path", f"{len(proof.path)} hashes to the root"),
            ("signed note", note[0]),
            *(("", line) for line in note[1:]),
            ("to check it", "--json, and docs/guide/audit.md"),
        ),
    )


@checkpoints_app.command("list")
def list_checkpoints(
    context: typer.Context,
    after: Annotated[int, typer.Option(min=0, help="Show those behind this number.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=LIST_LIMIT, help="How many.")] = LIST_DEFAULT,
    as_json: AsJson = False,
) -> None:
    """List the signed checkpoints, oldest first."""
    terminal = terminal_of(context)
    page = _call(terminal, lambda ledger: ledger.checkpoints(after=after, limit=limit))
    if as_json:
        terminal.json(page)
        return
    from tollkeeper.credits.checkpoint import read_checkpoint
    from tollkeeper.credits.note import split_note

    said = [read_checkpoint(split_note(item.note)[0]) for item in page.items]
    rows = [
        (f"{each.number:,}", f"{each.made_at:%Y-%m-%d %H:%M:%S}", f"{each.leaves:,}",
         each.root.hex())
        for each in said
    ]  # fmt: skip
    terminal.table("Checkpoints", ("#number", "made (UTC)", "#accounts", "root"), rows)
    if page.next is not None:
        terminal.facts("There is more", (("next page", f"--after {page.next}"),))


@checkpoints_app.command("key")
def create_key(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Where the private key goes; FILE.pub beside it.")
    ],
    name: Annotated[
        str | None,
        typer.Option(help="What the key is called in every note: a URL of yours without scheme."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key pair to sign checkpoints with; an existing file is never overwritten."""
    from tollkeeper.credits import keyfile
    from tollkeeper.kernel.ids import system_token

    terminal = terminal_of(context)
    key = keyfile.create_key(file, name=name or keyfile.KEY_NAME, tokens=system_token)
    public = {"public_key": key.verifying.text, "file": str(keyfile.public_path(file))}
    if as_json:
        terminal.json(public)
        return
    terminal.facts(
        f"The private key is in {file}: for the worker alone, as TOLLKEEPER_CHECKPOINT_KEY",
        (("public key", public["public_key"]), ("also in", public["file"])),
    )


async def _verified(
    terminal: Terminal, ledger: AuditLedger, account_id: str | None, *, as_json: bool
) -> tuple[VerificationView, TollkeeperError | None]:
    """Verify, and show how far it is to whoever waits; return also why it ended early, if so."""
    seen: VerificationView | None = None

    def watch(found: VerificationView) -> None:
        nonlocal seen
        seen = found

    def transactions() -> int:
        return 0 if seen is None else seen.transactions

    progress = nullcontext() if as_json else terminal.progress("verifying", done=transactions)
    try:
        async with progress:
            return await ledger.verify(account_id, watch=watch), None
    except TollkeeperError as error:
        if seen is None:
            raise
        return seen, error


def _audit(
    terminal: Terminal, path: Path, keys: Sequence[str], *, is_partial: bool
) -> "AuditFindings":
    """Hold the ledger to the notes in a file."""
    from tollkeeper.credits.keyfile import read_verifying_keys

    if not keys:
        raise typer.BadParameter("is needed with --checkpoints", param_hint="--public-key")
    known = [key for text in keys for key in read_verifying_keys(text)]
    try:
        with path.open("rb") as file:
            return _call(
                terminal,
                lambda ledger: _audited(
                    cast("AuditedLedger", ledger), file, known, is_partial=is_partial
                ),
            )
    except OSError as error:
        raise ConfigurationError(problem=f"{path} cannot be read: {error.strerror}.") from error


async def _audited(
    ledger: "AuditedLedger", file: BinaryIO, keys: "Sequence[VerifyingKey]", *, is_partial: bool
) -> "AuditFindings":
    from tollkeeper.credits.audit import CheckpointAudit
    from tollkeeper.credits.errors import NoteInvalid

    audit, notes = CheckpointAudit(ledger, keys), _NoteReader(file)
    torn: NoteInvalid | None = None
    missing = 0
    # A ledger at work may be publishing what was made this very moment: look again before accusing.
    for second in range(PUBLISHING_S + 1):
        torn = None
        try:
            await audit.read(notes.read())
        except NoteInvalid as error:
            torn = error
        missing = 0 if is_partial else await audit.missing()
        if not missing and torn is None:
            break
        if second < PUBLISHING_S:
            await asyncio.sleep(1)
    if torn is not None:
        audit.torn(torn)
    if missing:
        audit.ends_early(missing)
    return audit.finish()


class _NoteReader:
    """Reads notes to the end of a file that may grow, and goes on behind the last whole one."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._place = 0
        self._before = 0
        self._after = 0
        self._has_ended = False

    def read(self) -> Iterator[str]:
        """Yield the notes behind those that were read already."""
        from tollkeeper.credits.note import notes_in

        self._file.seek(self._place)
        self._before = self._after = self._place
        self._has_ended = False
        for note in notes_in(self._lines()):
            # A note is known to be whole when the line behind it was seen.
            self._place = self._after if self._has_ended else self._before
            yield note

    def _lines(self) -> Iterator[str]:
        for line in self._file:
            self._before, self._after = self._after, self._after + len(line)
            yield line.decode(errors="replace")
        self._has_ended = True


def _show(
    terminal: Terminal, found: VerificationView, audited: "AuditFindings | None", *, as_json: bool
) -> None:
    if as_json:
        terminal.json(found if audited is None else _joined(found, audited))
        return
    _print_verification(terminal, found)
    if audited is not None:
        _print_audit(terminal, audited)


def _joined(found: VerificationView, audited: "AuditFindings") -> dict[str, object]:
    """Return one document: the verification's members, with the audit's faults among its own."""
    import msgspec

    document: dict[str, object] = msgspec.to_builtins(found)
    about: dict[str, object] = msgspec.to_builtins(audited)
    faults = [*msgspec.to_builtins(found.faults), *msgspec.to_builtins(audited.faults)]
    del about["faults"]
    is_more = bool(about.pop("more_faults")) or found.more_faults
    return {**document, "faults": faults, "more_faults": is_more, "audit": about}


def _print_verification(terminal: Terminal, found: VerificationView) -> None:
    faults = f"{len(found.faults):,}{' and more' if found.more_faults else ''}"
    is_whole = found.next is None
    holds = "The ledger holds" if is_whole else "Not verified to the end; so far the ledger holds"
    terminal.facts(
        "The ledger is NOT what it must be" if found.faults else holds,
        (
            ("accounts", f"{found.accounts:,}"),
            ("transactions", f"{found.transactions:,}"),
            ("topped up", f"{found.topped_up:,}"),
            ("consumed", f"{found.consumed:,}"),
            ("balances", f"{found.balance:,}"),
            ("faults", faults if found.faults else "none"),
            *(() if is_whole else (("NOT verified", f"accounts behind {found.next}"),)),
        ),
    )
    _print_faults(
        terminal,
        [(each.account_id or "-", each.sequence, each.fault, each.detail) for each in found.faults],
    )


def _print_audit(terminal: Terminal, audited: "AuditFindings") -> None:
    faults = f"{len(audited.faults):,}{' and more' if audited.more_faults else ''}"
    repeated = f", {audited.repeated:,} of them twice" if audited.repeated else ""
    terminal.facts(
        "The ledger is what was signed"
        if not audited.faults
        else "The ledger is NOT what was signed",
        (
            ("checkpoints", f"{audited.checkpoints:,}{repeated}"),
            ("leaves", f"{audited.leaves:,}"),
            ("faults", faults if audited.faults else "none"),
        ),
    )
    _print_faults(
        terminal,
        [
            (each.account_id or "-", each.sequence, each.fault.value, each.detail)
            for each in audited.faults
        ],
    )


def _print_faults(terminal: Terminal, faults: Sequence[tuple[str, int, str, str]]) -> None:
    if faults:
        rows = [
            (account, f"{sequence:,}", kind, detail) for account, sequence, kind, detail in faults
        ]
        terminal.table("Faults", ("account", "#sequence", "fault", "detail"), rows)


def _call(terminal: Terminal, work: Callable[[AuditLedger], Awaitable[_Result]]) -> _Result:
    # What `tollkeeper.cli` passes has the calls of all commands.
    return terminal.call(lambda ledger: work(cast("AuditLedger", ledger)))
