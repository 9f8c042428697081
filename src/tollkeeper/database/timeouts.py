"""How long a connection's statements, its waits for locks and its pauses may take (pure).

The server keeps these, for each role of connection its own. The driver's limit lies behind the
server's: it is for a server that accepts and never answers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

GRACE_S = 5.0
"""The driver gives up so long after the server should have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Limits of one role of connection."""

    statement_s: float
    lock_s: float
    idle_in_transaction_s: float

    def __post_init__(self) -> None:
        if not 0 < self.lock_s <= self.statement_s or self.idle_in_transaction_s <= 0:
            raise ValueError("needs 0 < lock_s <= statement_s and idle_in_transaction_s > 0")

    @property
    def command_s(self) -> float:
        """How long the driver waits for a statement's answer."""
        return self.statement_s + GRACE_S

    def settings(self) -> Mapping[str, str]:
        """Return them as settings of a session."""
        return {
            "statement_timeout": f"{self.statement_s * 1_000:.0f}ms",
            "lock_timeout": f"{self.lock_s * 1_000:.0f}ms",
            "idle_in_transaction_session_timeout": f"{self.idle_in_transaction_s * 1_000:.0f}ms",
        }
