"""What callers import: HTTP connections to a Tollkeeper service, keys minted and kept."""

from tollkeeper.client.chooser import Choice, Chooser, ChooserLimits
from tollkeeper.client.credits import CreditsClient
from tollkeeper.client.errors import (
    AnswerMissing,
    CallFailed,
    CallRefused,
    ClientError,
    ServiceUnreachable,
    TokenLost,
)
from tollkeeper.client.keys import KeysClient
from tollkeeper.client.messages import Operation
from tollkeeper.client.shadow import ShadowClient
from tollkeeper.client.shadow_messages import Outcome, Unit

__all__ = [
    "AnswerMissing",
    "CallFailed",
    "CallRefused",
    "Choice",
    "Chooser",
    "ChooserLimits",
    "ClientError",
    "CreditsClient",
    "KeysClient",
    "Operation",
    "Outcome",
    "ServiceUnreachable",
    "ShadowClient",
    "TokenLost",
    "Unit",
]
