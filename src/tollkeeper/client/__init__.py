"""What callers import: HTTP connections to a Tollkeeper service, keys minted and kept."""

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

__all__ = [
    "AnswerMissing",
    "CallFailed",
    "CallRefused",
    "ClientError",
    "CreditsClient",
    "KeysClient",
    "Operation",
    "ServiceUnreachable",
    "TokenLost",
]
