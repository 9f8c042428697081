"""The credits service: which routes it has, and what it is made of.

What is the same for all of them is in `frame.py`, how their processes live in `serving.py`.
"""

from tollkeeper.access.api import PROBLEMS as ACCESS_PROBLEMS
from tollkeeper.access.api import KeysApi
from tollkeeper.config import Settings
from tollkeeper.credits.alert_api import AlertsApi
from tollkeeper.credits.api import PROBLEMS as CREDITS_PROBLEMS
from tollkeeper.credits.api import CreditsApi
from tollkeeper.credits.audit_api import AuditApi
from tollkeeper.credits.freeze_api import FreezesApi
from tollkeeper.credits.hold_api import HoldsApi
from tollkeeper.credits.usage_api import UsageApi
from tollkeeper.frame import Busiest, Offer
from tollkeeper.serving import Service, serve
from tollkeeper.web.problem import SHARED_PROBLEMS, ProblemTable
from tollkeeper.wiring import CreditsRuntime, credits_runtime

PROBLEMS: ProblemTable = {**SHARED_PROBLEMS, **ACCESS_PROBLEMS, **CREDITS_PROBLEMS}
"""Every problem the credits service can answer."""

CREDITS_TAGS = {
    "accounts": "What holds credits. An account belongs to one tenant.",
    "transactions": "What moves credits. Each is one immutable row of the ledger.",
    "holds": "Credits promised before the work, and taken when its price is known.",
    "alerts": "Being told that an account's credits run low, before they are spent.",
    "usage": "What was consumed and purchased, when and for what.",
    "audit": "Whether the ledger is what it must be.",
    "keys": "Who may call. A key carries scopes, and may be bound to a tenant.",
}
"""The groups of its reference page, in their order."""


def offer_credits(runtime: CreditsRuntime) -> Offer:
    """Return what the credits service has of its own."""
    entropy, clock = runtime.entropy, runtime.clock
    api = CreditsApi(runtime.credits, entropy=entropy, problems=PROBLEMS)
    holds = HoldsApi(runtime.credits, clock=clock, entropy=entropy, problems=PROBLEMS)
    alerts = AlertsApi(runtime.alerts, problems=PROBLEMS)
    usage = UsageApi(runtime.usage, clock=clock, problems=PROBLEMS)
    audit = AuditApi(runtime.auditor, problems=PROBLEMS)
    freezes = FreezesApi(runtime.credits, entropy=entropy, problems=PROBLEMS)
    keys = KeysApi(runtime.issuer, runtime.access, clock=clock, problems=PROBLEMS)
    return Offer(
        title="Tollkeeper credits",
        description="Prepaid credits that cannot go negative. Amounts are whole numbers of "
        "minor units; bodies are JSON; lists page by cursor.",
        tags=CREDITS_TAGS,
        problems=PROBLEMS,
        routes=(
            *api.routes(), *holds.routes(), *alerts.routes(), *usage.routes(), *audit.routes(),
            *freezes.routes(), *keys.routes(),
        ),
        busiest=Busiest(
            prefix="/v1/accounts/", parameter="account_id", endings=api.express()
        ),
    )  # fmt: skip


CREDITS = Service(
    name="credits",
    databases=("credits", "access"),
    port="credits_port",
    runtime=credits_runtime,
    offer=offer_credits,
)


def serve_credits(settings: Settings) -> None:
    """Serve the ledger until SIGTERM or Ctrl-C.

    Raises:
        ConfigurationError: the port is taken, a DSN is missing, or its server will never do.
    """
    serve(settings, CREDITS)
