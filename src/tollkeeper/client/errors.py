"""Errors of the client.

ClientError
├── CallMalformed             a field cannot be sent as it is: nothing was sent
├── ServiceUnreachable        no connection could be made: nothing was sent
├── AnswerMissing             sent, and no usable answer came back: the outcome is unknown
│   ├── ConnectionLost        the connection broke before the answer was whole
│   ├── AnswerTimeout         no answer before the deadline
│   ├── AnswerMalformed       bytes came back that are not the answer the contract promises
│   └── TokenLost             ... to a call that makes a key: its token is gone
├── CallFailed                the service answered with a problem document
│   └── CallRefused           ... because the ledger's rules or its state do not allow the call
├── TraceMalformed            (client/trace.py) a usage trace has lines that cannot be billed
└── TraceUnbillable           (client/trace.py) a usage trace cannot be billed under these terms

Only `AnswerMissing` leaves the outcome open, and only an idempotency key makes it safe to repeat.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tollkeeper.kernel.errors import TollkeeperError

REFUSAL_STATUSES = frozenset({402, 404, 409, 422, 423})
"""Statuses by which the ledger says no; every other error status is a fault or a wrong call."""


@dataclass(eq=False, kw_only=True)
class ClientError(TollkeeperError):
    """A call to a Tollkeeper service did not succeed."""


@dataclass(eq=False, kw_only=True)
class CallMalformed(ClientError):
    """A field of the call cannot be put into a request; nothing was sent."""

    field: str
    fault: str

    def message(self) -> str:
        """Name the field and its fault; the value may be a secret."""
        return f"{self.field} {self.fault}"


@dataclass(eq=False, kw_only=True)
class ServiceUnreachable(ClientError):
    """No connection could be made; nothing was sent."""

    url: str
    reason: str

    def message(self) -> str:
        """Say which address does not answer."""
        return (
            f"{self.url} cannot be reached ({self.reason}); `tollkeeper up` starts a service here"
        )


@dataclass(eq=False, kw_only=True)
class AnswerMissing(ClientError):
    """A request was sent and no usable answer came back: it may or may not have had its effect."""

    url: str


@dataclass(eq=False, kw_only=True)
class ConnectionLost(AnswerMissing):
    """The connection broke before the answer was whole."""

    reason: str

    def message(self) -> str:
        """Say what broke."""
        return f"the connection to {self.url} broke before the answer came: {self.reason}"


@dataclass(eq=False, kw_only=True)
class AnswerTimeout(AnswerMissing):
    """No answer came before the deadline."""

    waited_s: float

    def message(self) -> str:
        """Say how long was waited."""
        return f"{self.url} gave no answer within {self.waited_s:g} s"


@dataclass(eq=False, kw_only=True)
class AnswerMalformed(AnswerMissing):
    """The answer is not what the contract promises."""

    reason: str

    def message(self) -> str:
        """Say what is wrong with the answer."""
        return f"{self.url} did not answer as a Tollkeeper service: {self.reason}"


@dataclass(eq=False, kw_only=True)
class TokenLost(AnswerMissing):
    """No answer came to a call that makes a key: there may be a key whose token nobody has."""

    reason: str

    def message(self) -> str:
        """Say what to do about it."""
        return (
            f"{self.reason}; a key may have been made whose token nobody has: look for it with "
            "`tollkeeper keys list`, and revoke it (or, if it came by rotation, rotate it)"
        )


@dataclass(eq=False, kw_only=True)
class CallFailed(ClientError):
    """The service answered with a problem document (RFC 9457); the fields are its members."""

    status: int
    type: str
    title: str
    detail: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)
    retry_after_s: float | None = None

    def message(self) -> str:
        """Return the detail, or where there is none the title and where the cause is written."""
        if self.detail:
            return self.detail
        request_id = self.facts.get("request_id")
        if self.status < 500 or not isinstance(request_id, str):
            return f"{self.title} ({self.status})"
        return (
            f"the service could not do it: {self.title} ({self.status}); its log says why, at "
            f"request_id {request_id}"
        )

    @property
    def name(self) -> str:
        """Return the problem's short name: the last part of its type URI."""
        return self.type.rpartition(":")[2]


@dataclass(eq=False, kw_only=True)
class CallRefused(CallFailed):
    """The ledger said no: its rules or its state do not allow the call."""
