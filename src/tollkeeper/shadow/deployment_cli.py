"""`tollkeeper shadow decisions|deploy|deployments|rollback`: what the gate said, and what is done.

A deployment that the gate refuses is said condition by condition, and ends with exit code 3.
"""

from collections.abc import Sequence
from typing import Annotated

import typer

from tollkeeper.kernel.errors import TollkeeperError
from tollkeeper.shadow.cli import (
    EXIT_REFUSED,
    PAGE_DEFAULT,
    PAGE_LIMIT,
    After,
    AsJson,
    Everything,
    ExperimentId,
    Limit,
    moment_text,
    print_pages,
    terminal_of,
)
from tollkeeper.shadow.remote import DecisionView, DeploymentView, Fact, PageView, Remote, Terminal
from tollkeeper.shadow.tables import VERDICT_TONES, document_of, why_text
from tollkeeper.shadow.unit_cli import app

__all__ = ["app", "deployment_facts"]

_DECISION_COLUMNS = ("#look", "kind", "decided (UTC)", "verdict", "variant", "why")
_DEPLOYMENT_COLUMNS = ("deployment", "variant", "deployed (UTC)", "rolled back (UTC)", "reason")

DeploymentId = Annotated[
    str, typer.Argument(metavar="DEPLOYMENT", help="Id of the deployment.", show_default=False)
]


@app.command()
def decisions(
    context: typer.Context,
    experiment_id: ExperimentId,
    limit: Limit = None,
    after: After = None,
    everything: Everything = False,
    as_json: AsJson = False,
) -> None:
    """List what the gate decided, oldest first."""
    terminal = terminal_of(context)
    size = limit or (PAGE_LIMIT if everything else PAGE_DEFAULT)
    listing = terminal.listing(f"Decisions about {experiment_id}", _DECISION_COLUMNS)

    async def read(remote: Remote, behind: str | None) -> PageView[DecisionView]:
        return await remote.decisions(experiment_id, after=behind, limit=size)

    def show(items: Sequence[DecisionView]) -> None:
        if items:
            tones = [VERDICT_TONES.get(each.verdict, "") for each in items]
            listing.add([_decision_row(each) for each in items], tones)
        elif after is None:
            terminal.say("Nothing is decided yet: the first planned look is not due.")

    print_pages(terminal, read, show, after=after, everything=everything, as_json=as_json)


@app.command()
def deploy(
    context: typer.Context,
    experiment_id: ExperimentId,
    variant: Annotated[str, typer.Argument(metavar="VARIANT", help="What everybody shall get.")],
    as_json: AsJson = False,
) -> None:
    """Give a variant to everybody, if the gate lets it through; exit 3 if it does not."""
    terminal = terminal_of(context)
    try:
        deployment = terminal.call_shadow(lambda remote: remote.deploy(experiment_id, variant))
    except TollkeeperError as error:
        reasons = _reasons_of(error)
        if as_json or not reasons:
            raise
        _say_refused(terminal, experiment_id, variant, reasons)
        raise typer.Exit(EXIT_REFUSED) from error
    if as_json:
        terminal.json(deployment)
        return
    terminal.facts(
        f"{deployment.variant} is deployed: everybody gets it", deployment_facts(deployment)
    )
    terminal.say(f"Why it may be: tollkeeper shadow explain {deployment.deployment_id}")
    terminal.say(f"Take it back:  tollkeeper shadow rollback {deployment.deployment_id}")


@app.command()
def deployments(
    context: typer.Context, experiment_id: ExperimentId, as_json: AsJson = False
) -> None:
    """List the deployments of an experiment, oldest first."""
    terminal = terminal_of(context)
    found = terminal.call_shadow(lambda remote: remote.deployments(experiment_id))
    if as_json:
        terminal.json({"items": found})
        return
    if not found:
        terminal.say(f"Nothing of {experiment_id} was deployed.")
        return
    terminal.table(
        f"Deployments of {experiment_id}",
        _DEPLOYMENT_COLUMNS,
        [
            (
                each.deployment_id, each.variant, moment_text(each.deployed_at),
                "-" if each.rolled_back_at is None else moment_text(each.rolled_back_at),
                each.reason or "",
            )
            for each in found
        ],
        ["good" if each.rolled_back_at is None else "" for each in found],
    )  # fmt: skip


@app.command()
def rollback(
    context: typer.Context,
    deployment_id: DeploymentId,
    reason: Annotated[str | None, typer.Option(help="Why; kept with it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Take a deployment back: everybody gets the control again. It is always allowed."""
    terminal = terminal_of(context)
    found = terminal.call_shadow(lambda remote: remote.roll_back(deployment_id, reason=reason))
    if as_json:
        terminal.json(found)
        return
    terminal.facts(f"{found.variant} is taken back", deployment_facts(found))


def deployment_facts(deployment: DeploymentView) -> list[Fact]:
    """Return what is shown of a deployment."""
    facts: list[Fact] = [
        ("deployment", deployment.deployment_id),
        ("experiment", deployment.experiment_id),
        ("variant", deployment.variant),
        (
            "deployed (UTC)",
            f"{moment_text(deployment.deployed_at)} by key {deployment.deployed_by}",
        ),
    ]
    if deployment.rolled_back_at is not None:
        back = f"{moment_text(deployment.rolled_back_at)} by key {deployment.rolled_back_by}"
        facts.append(("taken back (UTC)", back, "warn"))
        facts.append(("because", deployment.reason or "nobody said why"))
    return facts


def _decision_row(decision: DecisionView) -> tuple[str, ...]:
    document = document_of(decision.document)
    return (
        f"{decision.look:,}", decision.kind, moment_text(decision.decided_at), decision.verdict,
        decision.variant or "-", "" if document is None else why_text(document),
    )  # fmt: skip


def _reasons_of(error: TollkeeperError) -> list[str]:
    """Return the conditions that a refusal names."""
    facts = getattr(error, "facts", {})
    reasons = facts.get("reasons") if isinstance(facts, dict) else None
    return [str(reason) for reason in reasons] if isinstance(reasons, list) else []


def _say_refused(
    terminal: Terminal, experiment_id: str, variant: str, reasons: Sequence[str]
) -> None:
    terminal.say_toned(f"{variant} of {experiment_id} may not be deployed:", "bad")
    for reason in reasons:
        terminal.say_toned(f"  - {reason}", "bad")
    terminal.say(f"How it stands: tollkeeper shadow analyse {experiment_id}")
