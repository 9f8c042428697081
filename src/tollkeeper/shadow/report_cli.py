"""`tollkeeper shadow report`: an experiment as one page and one picture, to keep and to send.

The service is asked for numbers; they are drawn here. Needs the extra `report`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from tollkeeper.shadow.analyse_cli import AnalysisUnreadable
from tollkeeper.shadow.cli import PAGE_LIMIT, ExperimentId, terminal_of
from tollkeeper.shadow.explain_cli import app
from tollkeeper.shadow.remote import DecisionView, ExperimentView, Remote

if TYPE_CHECKING:
    from tollkeeper.shadow.history import Report

__all__ = ["app"]


@app.command()
def report(
    context: typer.Context,
    experiment_id: ExperimentId,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page there, which loads nothing.")
    ] = None,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a picture there.")] = None,
) -> None:
    """Draw an experiment: what is believed of each variant, its course, the gate's conditions.

    A file is written whole or not at all. Needs pip install 'tollkeeper[report]'.
    """
    if html is None and png is None:
        raise typer.BadParameter("give --html or --png, or both")
    if html is not None and html == png:
        raise typer.BadParameter("give two different files", param_hint="--png")
    terminal = terminal_of(context)
    raw, experiment, decisions = terminal.call_shadow(lambda remote: _read(remote, experiment_id))
    from tollkeeper.shadow.page import html_of  # loads numpy and scipy
    from tollkeeper.shadow.pictures import png_of

    found = _report_of(raw, experiment, decisions)
    documents: list[tuple[Path, bytes]] = []  # all of them are drawn before any is written
    if html is not None:
        documents.append((html, html_of(found).encode()))
    if png is not None:
        documents.append((png, png_of(found)))
    for path, document in documents:
        terminal.write(path, document)
        terminal.say(f"{path}: {len(document):,} bytes")


async def _read(
    remote: Remote, experiment_id: str
) -> tuple[bytes, ExperimentView, list[DecisionView]]:
    """Read what a report is made of; a look that is due is taken first, and is in it."""
    raw = await remote.analysis(experiment_id)
    experiment = await remote.experiment(experiment_id)
    page = await remote.decisions(experiment_id, limit=PAGE_LIMIT)
    decisions = list(page.items)
    while page.next is not None:
        page = await remote.decisions(experiment_id, after=page.next, limit=PAGE_LIMIT)
        decisions += page.items
    return raw, experiment, decisions


def _report_of(
    raw: bytes, experiment: ExperimentView, decisions: Sequence[DecisionView]
) -> "Report":
    from tollkeeper.shadow.analysis import Analysis
    from tollkeeper.shadow.history import Past, PastDocument, Report
    from tollkeeper.shadow.model import Verdict

    try:
        return Report(
            analysis=msgspec.json.decode(raw, type=Analysis),
            past=tuple(
                Past(
                    kind=each.kind,
                    look=each.look,
                    decided_at=each.decided_at,
                    verdict=Verdict(each.verdict),
                    document=msgspec.convert(each.document, PastDocument),
                )
                for each in decisions
            ),
            state=experiment.state,
            deployed=experiment.deployed,
        )
    except msgspec.MsgspecError as error:
        raise AnalysisUnreadable from error
