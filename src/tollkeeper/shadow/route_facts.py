"""What the routes of the shadow service say of themselves, and which error is which problem."""

from litestar.openapi.spec import Parameter, Schema
from litestar.openapi.spec.enums import OpenAPIFormat, OpenAPIType

from tollkeeper.shadow import errors
from tollkeeper.shadow.requests import ID_PATTERN, ID_RULE
from tollkeeper.web.openapi import NextStep
from tollkeeper.web.problem import URN, ProblemKind, ProblemTable

PROBLEMS: ProblemTable = {
    errors.ExperimentNotFound: ProblemKind(404, URN + "experiment-not-found", "No such experiment"),
    errors.ExperimentTaken: ProblemKind(
        409, URN + "experiment-taken", "The id stands for another experiment"
    ),
    errors.DefinitionInvalid: ProblemKind(
        400, URN + "definition-invalid", "No experiment can be defined like this"
    ),
    errors.ExperimentNotDraft: ProblemKind(
        409, URN + "experiment-not-draft", "The experiment has started"
    ),
    errors.StateRefused: ProblemKind(
        409, URN + "state-refused", "There is no way from one state to the other"
    ),
    errors.ExperimentChanged: ProblemKind(
        409, URN + "experiment-changed", "The experiment was changed meanwhile"
    ),
    errors.ExperimentNotRunning: ProblemKind(
        409, URN + "experiment-not-running", "The experiment does not run"
    ),
    errors.NamespaceTaken: ProblemKind(
        409, URN + "namespace-taken", "The part of the namespace is taken"
    ),
    errors.VariantUnknown: ProblemKind(404, URN + "variant-unknown", "No such variant"),
    errors.MetricUnknown: ProblemKind(400, URN + "metric-unknown", "No such metric"),
    errors.EpochUnknown: ProblemKind(400, URN + "epoch-unknown", "No such epoch"),
    errors.ValueInvalid: ProblemKind(
        400, URN + "value-invalid", "The metric cannot have this value"
    ),
    errors.UnitNotExposed: ProblemKind(
        409, URN + "unit-not-exposed", "The unit was never assigned"
    ),
    errors.OutcomeReused: ProblemKind(
        422, URN + "outcome-reused", "The outcome_id was used for another outcome"
    ),
    errors.GateRefused: ProblemKind(
        409, URN + "gate-refused", "The gate does not let the variant through"
    ),
    errors.AlreadyDeployed: ProblemKind(
        409, URN + "already-deployed", "A variant is deployed already"
    ),
    errors.DeploymentNotFound: ProblemKind(404, URN + "deployment-not-found", "No such deployment"),
    errors.NotEnoughData: ProblemKind(
        409, URN + "not-enough-data", "Too little is known for a posterior"
    ),
    errors.ProfileUnknown: ProblemKind(400, URN + "profile-unknown", "No such profile of the gate"),
    errors.QueueFull: ProblemKind(503, URN + "overloaded", "Too many operations wait"),
    errors.Draining: ProblemKind(503, URN + "draining", "The service is shutting down"),
    errors.ShadowUnavailable: ProblemKind(
        503, URN + "shadow-unavailable", "Experiments cannot be reached now"
    ),
}

NUMBER_LIMIT = 2**31 - 1
"""No experiment has a greater number, and no decision a greater sequence."""

EXAMPLE_ID = "01978a3c-5f00-7abc-8def-0123456789ab"
"""Stands in the document where an id of one's own belongs."""

EXPERIMENT_ID = Parameter(
    name="experiment_id",
    param_in="path",
    required=True,
    description=ID_RULE,
    schema=Schema(type=OpenAPIType.STRING, pattern=ID_PATTERN),
    example="checkout",
)
DEPLOYMENT_ID = Parameter(
    name="deployment_id",
    param_in="path",
    required=True,
    description="UUID, as the service gave it",
    schema=Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.UUID),
    example=EXAMPLE_ID,
)
OF_EXPERIMENT = tuple(
    NextStep(operation, "experiment_id")
    for operation in (
        "read_experiment", "change_experiment", "assign", "read_analysis", "list_decisions",
        "deploy", "list_deployments",
    )
)  # fmt: skip
OF_DEPLOYMENT = tuple(
    NextStep(operation, "deployment_id") for operation in ("read_deployment", "roll_back")
)
"""What can be done next with what an answer names."""
