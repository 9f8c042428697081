"""`tollkeeper shadow explain`: why a deployment was allowed, computed anew by whoever doubts it.

The service's word is not taken for it: it gives what went in, this process decides again.
"""

from typing import Annotated

import typer

from tollkeeper.shadow.analyse_cli import app
from tollkeeper.shadow.cli import AsJson, moment_text, terminal_of
from tollkeeper.shadow.deployment_cli import DeploymentId, deployment_facts
from tollkeeper.shadow.model import Decision, Verdict
from tollkeeper.shadow.remote import EvidenceView, ProvenView, Terminal
from tollkeeper.shadow.tables import (
    ARM_COLUMNS,
    CONDITION_COLUMNS,
    VERDICT_TONES,
    arm_rows,
    condition_rows,
    document_of,
    rate_text,
)

__all__ = ["app", "differences_of"]

EXIT_DIFFERENT = 4
"""Computed anew, it is not the same: as `verify` ends when it finds faults."""


@app.command()
def explain(
    context: typer.Context,
    deployment_id: DeploymentId,
    inputs: Annotated[
        bool, typer.Option("--inputs", help="Print the inputs of the decision, and nothing else.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show why a deployment was allowed, and decide it again here; exit 4 if it is not the same."""
    terminal = terminal_of(context)
    proven = terminal.call_shadow(lambda remote: remote.deployment(deployment_id))
    if inputs:
        terminal.text(proven.decision.inputs + "\n")
        return
    differences = differences_of(proven)
    if as_json:
        terminal.json(
            {
                "deployment": proven.deployment, "decision": proven.decision,
                "recomputed": {"identical": not differences, "differences": differences},
            }
        )  # fmt: skip
    else:
        _print(terminal, proven)
        _print_recomputed(terminal, differences)
    if differences:
        raise typer.Exit(EXIT_DIFFERENT)


def differences_of(proven: ProvenView) -> list[str]:
    """Decide again what a deployment stands on, and return every difference."""
    from tollkeeper.shadow.decision import recompute  # loads numpy and scipy
    from tollkeeper.shadow.evidence import parse

    deployment, kept = proven.deployment, proven.decision
    differences = list(recompute(_decision_of(kept)).differences)
    if kept.verdict != Verdict.DEPLOY:
        differences.append(f"the decision says {kept.verdict}, and not deploy")
    if (deployment.decision_no, deployment.input_digest) != (kept.decision_no, kept.input_digest):
        differences.append("the deployment names another decision")
    if not differences:  # the inputs can be read
        names = parse(kept.inputs).definition.names
        if kept.variant_no is None or names[kept.variant_no] != deployment.variant:
            differences.append("the decision is about another variant than is deployed")
    return differences


def _decision_of(kept: EvidenceView) -> Decision:
    return Decision(
        decision_no=kept.decision_no, experiment_no=kept.experiment_no, sequence=kept.sequence,
        kind=kept.kind, look=kept.look, decided_at=kept.decided_at, as_of=kept.as_of,
        expires_at=kept.expires_at, verdict=Verdict(kept.verdict), variant_no=kept.variant_no,
        input_digest=bytes.fromhex(kept.input_digest), inputs=kept.inputs, seed=kept.seed,
        code=kept.code, document=kept.document, prev_hash=bytes.fromhex(kept.prev_hash),
        hash=bytes.fromhex(kept.hash),
    )  # fmt: skip


def _print(terminal: Terminal, proven: ProvenView) -> None:
    deployment, kept = proven.deployment, proven.decision
    terminal.facts("Deployment", deployment_facts(deployment))
    document = document_of(kept.document)
    why = "" if document is None else f": {document.why}"
    terminal.facts(
        f"Decision {kept.decision_no:,}",
        (
            ("verdict", f"{kept.verdict}{why}", VERDICT_TONES.get(kept.verdict, "warn")),
            ("kind", f"{kept.kind} of look {kept.look:,}, number {kept.sequence:,} of its chain"),
            ("decided (UTC)", moment_text(kept.decided_at)),
            ("data as of (UTC)", moment_text(kept.as_of)),
            ("inputs SHA-256", kept.input_digest),
            ("seed", f"{kept.seed}"),
            ("decided by", kept.code),
            ("hash", kept.hash),
        ),
    )
    if document is None:
        terminal.say_toned("Its document is of another format, and is not shown.", "warn")
        return
    rows, tones = condition_rows(document.conditions, is_plain=terminal.is_plain(), is_whole=True)
    terminal.table("Conditions", CONDITION_COLUMNS, rows, tones)
    rows, tones = arm_rows(document.arms, kind=_kind_of(kept), candidate=document.candidate)
    terminal.table("Variants", ARM_COLUMNS, rows, tones)
    terminal.facts("Of the gate", (("errs", rate_text(document.rates, document.profile)),))


def _kind_of(kept: EvidenceView) -> str | None:
    """Return the primary metric's kind, for how its values are written."""
    from tollkeeper.shadow.errors import InputsUnreadable
    from tollkeeper.shadow.evidence import parse

    try:
        return parse(kept.inputs).definition.metrics[0].kind
    except InputsUnreadable:
        return None


def _print_recomputed(terminal: Terminal, differences: list[str]) -> None:
    if not differences:
        terminal.facts(
            "Recomputed here, from the inputs and the seed",
            (("result", "recomputed: identical, bit for bit", "good"),),
        )
        return
    terminal.facts(
        "Recomputed here, from the inputs and the seed: NOT the same",
        [("different", each, "bad") for each in differences],
    )
