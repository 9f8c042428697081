"""The shadow service: which routes it has, and what it is made of.

What is the same for all services is in `frame.py`, how their processes live in `serving.py`. Apart
from `app.py`, because what computes posteriors takes a third of a second to load.
"""

from tollkeeper.access.api import PROBLEMS as ACCESS_PROBLEMS
from tollkeeper.config import Settings
from tollkeeper.experiments import ShadowRuntime, shadow_runtime
from tollkeeper.frame import Busiest, Offer
from tollkeeper.serving import Service, serve
from tollkeeper.shadow.api import ExperimentsApi
from tollkeeper.shadow.decision_api import DecisionsApi
from tollkeeper.shadow.outcome_api import OutcomeApi
from tollkeeper.shadow.route_facts import PROBLEMS as EXPERIMENT_PROBLEMS
from tollkeeper.web.problem import SHARED_PROBLEMS, ProblemTable

TAGS = {
    "experiments": "What is compared, and how far it is. An experiment belongs to one tenant.",
    "units": "Who gets which variant, and what came of it.",
    "decisions": "What is known, and what the gate said of it.",
    "deployments": "Variants that everybody gets. Each stands on a decision.",
}
"""The groups of its reference page, in their order."""

PROBLEMS: ProblemTable = {**SHARED_PROBLEMS, **ACCESS_PROBLEMS, **EXPERIMENT_PROBLEMS}
"""Every problem the shadow service can answer."""


def offer_shadow(runtime: ShadowRuntime) -> Offer:
    """Return what the shadow service has of its own."""
    experiments = ExperimentsApi(runtime.experiments, problems=PROBLEMS)
    outcomes = OutcomeApi(runtime.experiments, clock=runtime.clock, problems=PROBLEMS)
    decisions = DecisionsApi(runtime.experiments, runtime.decider, problems=PROBLEMS)
    return Offer(
        title="Tollkeeper shadow",
        description="Experiments that decide rightly, and a gate that no deployment walks around. "
        "Bodies are JSON; lists page by cursor.",
        tags=TAGS,
        problems=PROBLEMS,
        routes=(*experiments.routes(), *outcomes.routes(), *decisions.routes()),
        busiest=Busiest(
            prefix="/v1/experiments/",
            parameter="experiment_id",
            endings=outcomes.endings(),
            paths=outcomes.paths(),
        ),
    )


SHADOW = Service(
    name="shadow",
    databases=("shadow", "access"),
    port="shadow_port",
    runtime=shadow_runtime,
    offer=offer_shadow,
)


def serve_shadow(settings: Settings) -> None:
    """Serve experiments until SIGTERM or Ctrl-C.

    Raises:
        ConfigurationError: the port is taken, a DSN is missing, or its server will never do.
    """
    serve(settings, SHADOW)
