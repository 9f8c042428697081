"""Bodies and answers of decisions and deployments, as `messages.py` has the others'. Pure."""

from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tollkeeper.shadow.messages import Name
from tollkeeper.shadow.model import Decision, Definition, Deployment, Verdict, is_storable
from tollkeeper.shadow.outcome_messages import invalid
from tollkeeper.shadow.views import Moment, utc
from tollkeeper.telemetry.cards import mask_cards

REASON_LIMIT = 500
"""Characters of the reason of a rollback."""

Hash = Annotated[str, Meta(description="SHA-256, hexadecimal")]
NoHash = Annotated[str, Meta(description="SHA-256, hexadecimal; empty: there is none before")]
JsonObject = Annotated[msgspec.Raw, Meta(extra_json_schema={"type": "object"})]


class DeploymentBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The variant that everybody shall get."""

    variant: Name


class RollbackBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Why it is taken back."""

    reason: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=REASON_LIMIT,
                description=f"1 to {REASON_LIMIT} characters; card numbers are masked",
            ),
        ]
        | None
    ) = None


class DecisionView(msgspec.Struct):
    """A stored evaluation of the gate."""

    decision_no: int
    sequence: Annotated[int, Meta(description="in the experiment's chain; the first is 1")]
    kind: Annotated[
        Literal["look", "confirmation"],
        Meta(description="a planned look, or the check at a deployment: it can only take away"),
    ]
    look: int
    decided_at: Moment
    as_of: Annotated[datetime, Meta(description="the moment whose data it rests on: UTC")]
    expires_at: Moment | None
    verdict: Verdict
    variant: Annotated[str | None, Meta(description="the one it is about")]
    document: Annotated[
        JsonObject, Meta(description="every condition with its figure, and the arms")
    ]
    input_digest: Hash
    prev_hash: NoHash
    hash: Hash


class DecisionsPage(msgspec.Struct):
    """Decisions, oldest first; `next` is null on the last page."""

    items: list[DecisionView]
    next: Annotated[str | None, Meta(description="send it as `after` for the next page")]


class EvidenceView(msgspec.Struct):
    """Everything to compute a decision anew, and its hash."""

    experiment_no: int
    decision_no: int
    sequence: int
    kind: Literal["look", "confirmation"]
    look: int
    decided_at: Moment
    as_of: Moment
    expires_at: Moment | None
    verdict: Verdict
    variant_no: int | None
    seed: int
    code: Annotated[str, Meta(description="the software that decided")]
    inputs: Annotated[str, Meta(description="the JSON text whose SHA-256 is `input_digest`")]
    document: Annotated[str, Meta(description="the JSON text that was computed from it")]
    input_digest: Hash
    prev_hash: NoHash
    hash: Hash


class DeploymentView(msgspec.Struct):
    """A variant that everybody gets, until it is rolled back."""

    deployment_id: Annotated[str, Meta(extra_json_schema={"format": "uuid"})]
    experiment_id: str
    tenant_id: str
    variant: str
    decision_no: int
    input_digest: Hash
    deployed_at: Moment
    deployed_by: Annotated[str, Meta(description="id of the API key")]
    rolled_back_at: Moment | None
    rolled_back_by: Annotated[str | None, Meta(description="id of the API key")]
    reason: Annotated[str | None, Meta(description="of the rollback")]


class DeploymentsView(msgspec.Struct):
    """All deployments of an experiment, oldest first."""

    items: list[DeploymentView]


class ProvenDeploymentView(msgspec.Struct):
    """A deployment, with the decision it stands on."""

    deployment: DeploymentView
    decision: EvidenceView


def reason_of(body: RollbackBody) -> str | None:
    """Return why a deployment is taken back.

    Raises:
        RequestInvalid: a text that cannot be kept.
    """
    if body.reason is not None and not is_storable(body.reason):
        raise invalid("reason", "must have no NUL")
    return None if body.reason is None else mask_cards(body.reason)


def decision_view(decision: Decision, definition: Definition) -> DecisionView:
    """Return a decision as the API lists it."""
    number = decision.variant_no
    return DecisionView(
        decision_no=decision.decision_no, sequence=decision.sequence, kind=_kind(decision),
        look=decision.look, decided_at=decision.decided_at.astimezone(UTC),
        as_of=decision.as_of.astimezone(UTC), expires_at=utc(decision.expires_at),
        verdict=decision.verdict, variant=None if number is None else definition.names[number],
        document=msgspec.Raw(decision.document.encode()),
        input_digest=decision.input_digest.hex(), prev_hash=decision.prev_hash.hex(),
        hash=decision.hash.hex(),
    )  # fmt: skip


def evidence_view(decision: Decision) -> EvidenceView:
    """Return a decision with all that it was computed from."""
    return EvidenceView(
        experiment_no=decision.experiment_no, decision_no=decision.decision_no,
        sequence=decision.sequence, kind=_kind(decision), look=decision.look,
        decided_at=decision.decided_at.astimezone(UTC), as_of=decision.as_of.astimezone(UTC),
        expires_at=utc(decision.expires_at), verdict=decision.verdict,
        variant_no=decision.variant_no, seed=decision.seed, code=decision.code,
        inputs=decision.inputs, document=decision.document,
        input_digest=decision.input_digest.hex(), prev_hash=decision.prev_hash.hex(),
        hash=decision.hash.hex(),
    )  # fmt: skip


def deployment_view(deployment: Deployment, definition: Definition) -> DeploymentView:
    """Return a deployment as the API shows it."""
    return DeploymentView(
        deployment_id=str(deployment.deployment_id), experiment_id=deployment.experiment_id,
        tenant_id=deployment.tenant_id, variant=definition.names[deployment.variant_no],
        decision_no=deployment.decision_no, input_digest=deployment.input_digest.hex(),
        deployed_at=deployment.deployed_at.astimezone(UTC), deployed_by=deployment.deployed_by,
        rolled_back_at=utc(deployment.rolled_back_at), rolled_back_by=deployment.rolled_back_by,
        reason=deployment.reason,
    )  # fmt: skip


def _kind(decision: Decision) -> Literal["look", "confirmation"]:
    return "look" if decision.kind == "look" else "confirmation"
