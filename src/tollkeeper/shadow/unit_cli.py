"""`tollkeeper shadow assign|outcome`: units and what became of them, one, or files of them."""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Annotated, Final, TypeVar

import typer

from tollkeeper.kernel.errors import ConfigurationError
from tollkeeper.shadow.cli import (
    EXIT_REFUSED,
    AsJson,
    ExperimentId,
    moment_text,
    terminal_of,
)
from tollkeeper.shadow.experiment_cli import app
from tollkeeper.shadow.remote import (
    AssignmentResultView,
    AssignmentView,
    Attributes,
    Fact,
    OutcomeResultView,
    RecordedView,
    Remote,
    Terminal,
)
from tollkeeper.shadow.unit_file import (
    BadLine,
    BinaryFile,
    OutcomeRow,
    OutcomesMalformed,
    decimal_of,
    moment_of,
    read_outcomes,
    read_units,
    survey_outcomes,
)

__all__ = ["app"]

BATCH: Final = 1_000
"""Units or outcomes in a request."""

TRIES: Final = 8
"""How often what the service cannot take now is sent again, half a second apart."""

TRIED_AGAIN_S: Final = 0.5
REFUSALS_LISTED: Final = 10
"""Refused lines that are shown; beyond that they are counted."""

_BUSY: Final = frozenset({429, 502, 503, 504})
_COLUMNS = ("unit", "variant", "status", "#probability", "#epoch", "since (UTC)")
_COUNTED: Final = "counted"

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")


@app.command()
def assign(
    context: typer.Context,
    experiment_id: ExperimentId,
    units: Annotated[
        list[str] | None, typer.Argument(metavar="UNIT", help="Ids of the units.")
    ] = None,
    attributes: Annotated[
        str | None,
        typer.Option(metavar="JSON", help="An object about the one unit, kept beside it."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(metavar="FILE|-", help="Ids of units, one a line.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON; of several units one document a line.")
    ] = False,
) -> None:
    """Assign units to variants, or show the ones that they have; exit 3 if any is refused."""
    terminal = terminal_of(context)
    named = units or []
    if bool(named) == (file is not None):
        raise typer.BadParameter("give UNITs or --file, and not both")
    if attributes is not None and (file is not None or len(named) > 1):
        raise typer.BadParameter("is of one unit", param_hint="--attributes")
    if file is None and len(named) == 1:
        known = None if attributes is None else _attributes_of(attributes)
        found = terminal.call_shadow(lambda remote: remote.assign(experiment_id, named[0], known))
        _print_assignment(terminal, experiment_id, found, as_json=as_json)
        return
    listing = terminal.listing(f"Units of {experiment_id}", _COLUMNS)
    refused: Counter[str] = Counter()

    def show(ids: Sequence[str], results: Sequence[AssignmentResultView]) -> None:
        for problem in (result.problem for result in results):
            if problem is not None:
                refused[problem.detail or problem.title] += 1
        if as_json:
            terminal.json_lines(results)
            return
        listing.add(
            [_assignment_row(*pair) for pair in zip(ids, results, strict=True)],
            ["" if each.assignment is not None else "bad" for each in results],
        )

    async def work(remote: Remote) -> None:
        with ExitStack() as opened:
            ids = iter(named) if file is None else _ids_in(opened, file)
            for batch in _batches(ids):
                results = await _patiently(
                    batch,
                    lambda items: remote.assign_batch(experiment_id, items),
                    lambda result: result.status,
                )
                show(batch, results)

    terminal.call_shadow(work)
    _leave_if_refused(terminal, refused)


@app.command()
def outcome(
    context: typer.Context,
    experiment_id: ExperimentId,
    unit_id: Annotated[str | None, typer.Argument(metavar="UNIT", help="Id of the unit.")] = None,
    value: Annotated[
        str | None, typer.Option(help="With at most 6 decimals; 1 if it is left out.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="The first one, if it is left out.")] = None,
    at: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="When it was: RFC 3339 with its zone; now."),
    ] = None,
    outcome_id: Annotated[
        str | None,
        typer.Option("--id", help="Its id: the same again is counted once. One is minted."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv|.jsonl",
            help="Outcomes, one a line: unit_id, and outcome_id, metric, value, occurred_at.",
        ),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave malformed lines out and list them.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Record an outcome of a unit, or a file of them; each is counted once.

    A file is checked before anything is sent. Lines without an outcome_id get one from the file's
    content: the same file again counts nothing twice. Exit 3 if any outcome is refused.
    """
    terminal = terminal_of(context)
    if (unit_id is None) == (file is None):
        raise typer.BadParameter("give a UNIT or --file, and not both")
    if file is not None:
        if any(each is not None for each in (value, metric, at, outcome_id)):
            raise typer.BadParameter("--value, --metric, --at and --id are of one outcome")
        _record_file(terminal, experiment_id, file, skip_bad=skip_bad, as_json=as_json)
        return
    number = None if value is None else decimal_of(value)
    if value is not None and number is None:
        raise typer.BadParameter(
            f"{value!r} is not a number with at most 6 decimals", param_hint="--value"
        )
    moment = None if at is None else moment_of(at)
    if at is not None and moment is None:
        raise typer.BadParameter(
            f"{at!r} is not a time with its zone, as 2026-01-31T12:00:00Z", param_hint="--at"
        )
    assert unit_id is not None
    found = terminal.call_shadow(
        lambda remote: remote.record(
            experiment_id, unit_id, number, metric=metric, occurred_at=moment,
            outcome_id=outcome_id,
        )
    )  # fmt: skip
    _print_recorded(terminal, unit_id, found, as_json=as_json)


@dataclass(kw_only=True)
class _Tally:
    """What became of the outcomes of a file."""

    sent: int = 0
    by_status: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    first_refused: list[str] = field(default_factory=list)

    def add(self, rows: Sequence[OutcomeRow], results: Sequence[OutcomeResultView]) -> None:
        """Count a batch."""
        for row, result in zip(rows, results, strict=True):
            self.sent += 1
            if result.outcome is not None:
                self.by_status[result.outcome.status] += 1
                self.duplicates += result.outcome.duplicate
            elif result.problem is not None:
                self.refused[result.problem.name] += 1
                if len(self.first_refused) < REFUSALS_LISTED:
                    detail = result.problem.detail or result.problem.title
                    self.first_refused.append(f"line {row.line:,}: {detail}")


def _record_file(
    terminal: Terminal, experiment_id: str, path: Path, *, skip_bad: bool, as_json: bool
) -> None:
    with ExitStack() as opened:
        file = _opened(opened, path)
        survey = survey_outcomes(file, experiment_id)
        if survey.bad and (not skip_bad or not survey.rows):
            raise OutcomesMalformed(path=str(path), bad=survey.bad, count=survey.bad_count)
        tally = _Tally()

        def rows() -> Iterator[OutcomeRow]:
            for entry in read_outcomes(file, experiment_id, survey.digest):
                if isinstance(entry, OutcomeRow):
                    yield entry

        async def work(remote: Remote) -> None:
            async with terminal.progress("outcomes", done=lambda: tally.sent, total=survey.rows):
                for batch in _batches(rows()):
                    sent: list[Mapping[str, object]] = [row.fields for row in batch]
                    results = await _patiently(
                        sent, remote.record_batch, lambda result: result.status
                    )
                    tally.add(batch, results)

        terminal.call_shadow(work)
    _print_tally(terminal, path, tally, bad=survey.bad, bad_count=survey.bad_count, as_json=as_json)
    if tally.refused:
        raise typer.Exit(EXIT_REFUSED)


def _print_tally(
    terminal: Terminal,
    path: Path,
    tally: _Tally,
    *,
    bad: Sequence[BadLine],
    bad_count: int,
    as_json: bool,
) -> None:
    if as_json:
        terminal.json(
            {
                "file": str(path), "outcomes": tally.sent, "statuses": dict(tally.by_status),
                "duplicates": tally.duplicates, "refused": dict(tally.refused),
                "first_refused": tally.first_refused, "malformed": bad_count,
            }
        )  # fmt: skip
        return
    others = sum(tally.by_status.values()) - tally.by_status[_COUNTED]
    explained = {
        "waiting": "their unit is not assigned: counted when it is",
        "before_exposure": "too long before their unit was assigned: not counted",
        "outside_window": "after the attribution window: not counted",
    }
    terminal.facts(
        f"Outcomes of {path}",
        (
            ("sent", f"{tally.sent:,}"),
            (
                _COUNTED,
                f"{tally.by_status[_COUNTED]:,}",
                "good" if not others and not tally.refused else "warn",
            ),
            *(
                (status.replace("_", " "), f"{count:,} ({explained.get(status, '')})", "warn")
                for status, count in tally.by_status.items()
                if status != _COUNTED
            ),
            ("recorded before", f"{tally.duplicates:,} of these: this changed nothing"),
            *((f"refused: {name}", f"{count:,}", "bad") for name, count in tally.refused.items()),
            *((("malformed", f"{bad_count:,} lines left out", "warn"),) if bad_count else ()),
        ),
    )
    for line in tally.first_refused:
        terminal.say_toned(f"  refused, {line}", "bad")
    for entry in bad:
        terminal.say_toned(f"  left out, line {entry.line:,}: {entry.problem}", "warn")


def _print_assignment(
    terminal: Terminal, experiment_id: str, found: AssignmentView, *, as_json: bool
) -> None:
    if as_json:
        terminal.json(found)
        return
    facts: list[Fact] = [("variant", found.variant)]
    if found.status == "assigned":
        facts.append(("status", "assigned"))
    else:
        facts.append(("status", status_text(found.status), "warn"))
    if found.probability is not None:
        facts.append(("probability", f"{found.probability:.2%}, in epoch {found.epoch}"))
    if found.exposed_at is not None:
        facts.append(("since (UTC)", moment_text(found.exposed_at)))
    terminal.facts(f"Unit {found.unit_id} in {experiment_id}", facts)


def status_text(status: str) -> str:
    """Return a unit's status as people read it."""
    said = {
        "held_out": "held out: the experiments of its group leave it alone",
        "excluded": "outside the experiment's part of the namespace",
        "paused": "the experiment is paused: nobody new is assigned",
        "ended": "the experiment has ended: everybody gets the control",
        "deployed": "deployed: everybody gets this variant",
    }
    return said.get(status, status)


def _assignment_row(unit_id: str, result: AssignmentResultView) -> tuple[str, ...]:
    found = result.assignment
    if found is None:
        fault = result.problem.title if result.problem else f"{result.status}"
        return unit_id, "-", fault, "", "", ""
    return (
        unit_id, found.variant, found.status.replace("_", " "),
        "" if found.probability is None else f"{found.probability:.2%}",
        "" if found.epoch is None else f"{found.epoch}",
        "" if found.exposed_at is None else moment_text(found.exposed_at),
    )  # fmt: skip


def _print_recorded(
    terminal: Terminal, unit_id: str, found: RecordedView, *, as_json: bool
) -> None:
    if as_json:
        terminal.json(found)
        return
    said = {
        _COUNTED: "counted",
        "waiting": "waiting: the unit is not assigned; counted when it is",
        "before_exposure": "not counted: too long before the unit was assigned",
        "outside_window": "not counted: after the attribution window",
    }
    terminal.facts(
        f"Outcome {found.outcome_id}",
        (
            ("unit", unit_id),
            (
                "status",
                said.get(found.status, found.status),
                "good" if found.status == _COUNTED else "warn",
            ),
            *((("before", "it was recorded before: this changed nothing"),) * found.duplicate),
        ),
    )


def _attributes_of(text: str) -> Attributes:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"is not JSON: {error}", param_hint="--attributes") from error
    if not isinstance(found, dict):
        raise typer.BadParameter("is not a JSON object", param_hint="--attributes")
    return found


def _ids_in(opened: ExitStack, path: Path) -> Iterator[str]:
    file = BytesIO(sys.stdin.buffer.read()) if str(path) == "-" else _opened(opened, path)
    bad = [entry for entry in read_units(file) if isinstance(entry, BadLine)]
    if bad:
        raise OutcomesMalformed(path=str(path), bad=tuple(bad[:3]), count=len(bad))
    file.seek(0)
    return (entry for entry in read_units(file) if isinstance(entry, str))


def _opened(opened: ExitStack, path: Path) -> BinaryFile:
    try:
        return opened.enter_context(path.open("rb"))
    except OSError as error:
        problem = f"cannot read {path}: {(error.strerror or str(error)).lower()}."
        raise ConfigurationError(problem=problem) from error


def _batches(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    left = iter(items)
    while batch := list(islice(left, BATCH)):
        yield batch


async def _patiently(
    items: Sequence[_Item],
    send: Callable[[Sequence[_Item]], Awaitable[Sequence[_Answer]]],
    status_of: Callable[[_Answer], int],
) -> list[_Answer]:
    """Send items together, again those that cannot be taken now, and return what became of each."""
    answers = list(await send(items))
    for _ in range(TRIES):
        again = [place for place, each in enumerate(answers) if status_of(each) in _BUSY]
        if not again:
            break
        await asyncio.sleep(TRIED_AGAIN_S)
        for place, each in zip(again, await send([items[place] for place in again]), strict=True):
            answers[place] = each
    return answers


def _leave_if_refused(terminal: Terminal, refused: Counter[str]) -> None:
    for reason, count in refused.most_common(REFUSALS_LISTED):
        terminal.say_toned(f"refused {count:,} times, {reason}", "bad")
    if refused:
        raise typer.Exit(EXIT_REFUSED)
