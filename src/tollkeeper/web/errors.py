"""What can be wrong with a request before a slice sees it. HTTP statuses are in `problem.py`.

WebError
├── NotAuthenticated          no usable bearer key; `reason` says what is missing
├── TooManyFailures           no valid key from this address too often; wait `retry_after_s`
├── ScopeMissing              the key is good, but does not allow this
├── OperatorNeeded            the key is bound to a tenant, and this is no tenant's business
├── RequestInvalid            the body or a parameter; `errors` names the fields
├── RequestAborted            the caller went away before its body was complete
├── BodyTooLarge              more bytes than `limit_bytes`
├── NotReady                  the service should get no traffic now; `faults` says why
├── IdempotencyKeyMissing     a money write without the header
└── IdempotencyKeyInvalid     the header is there, but unusable
"""

from dataclasses import dataclass

from tollkeeper.kernel.errors import TollkeeperError


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldFault:
    """One thing that is wrong: `field` is a path such as `operations[3].amount`."""

    field: str
    detail: str


@dataclass(eq=False, kw_only=True)
class WebError(TollkeeperError):
    """The request cannot be served as it came."""


@dataclass(eq=False, kw_only=True)
class NotAuthenticated(WebError):
    """No usable bearer key."""

    reason: str

    def message(self) -> str:
        """Return the reason, which is a full sentence."""
        return self.reason


@dataclass(eq=False, kw_only=True)
class TooManyFailures(WebError):
    """The address failed to show a valid key too often; a valid key is answered all the same."""

    retry_after_s: float

    def message(self) -> str:
        """Say what still works."""
        return (
            "too many requests without a valid key came from this address: "
            f"wait {self.retry_after_s:g} s; requests with a valid key are answered"
        )


@dataclass(eq=False, kw_only=True)
class ScopeMissing(WebError):
    """The key is good, but does not allow this."""

    needed: str

    def message(self) -> str:
        """Name the scope the key would need."""
        return f"this needs a key with the scope {self.needed}"


@dataclass(eq=False, kw_only=True)
class OperatorNeeded(WebError):
    """What a tenant must not decide or see, whatever its key allows."""

    what: str

    def message(self) -> str:
        """Say which key it takes."""
        return f"{self.what} is for the operator: use a key that is not bound to a tenant"


@dataclass(eq=False, kw_only=True)
class RequestInvalid(WebError):
    """The body or a parameter does not say what it must."""

    errors: tuple[FieldFault, ...]

    def message(self) -> str:
        """Name every field with its fault."""
        return "; ".join(f"{error.field}: {error.detail}" for error in self.errors)


@dataclass(eq=False, kw_only=True)
class RequestAborted(WebError):
    """The caller went away before its body was complete; nothing was done."""

    def message(self) -> str:
        """Say that the body ended early."""
        return "the request ended before its body was complete"


@dataclass(eq=False, kw_only=True)
class BodyTooLarge(WebError):
    """The body has more bytes than are taken."""

    limit_bytes: int

    def message(self) -> str:
        """Name the limit."""
        return f"the body may have at most {self.limit_bytes:,} bytes"


@dataclass(eq=False, kw_only=True)
class NotReady(WebError):
    """The service should get no traffic now."""

    faults: dict[str, str]
    ready: bool = False

    def message(self) -> str:
        """Say what is missing."""
        return "; ".join(f"{name}: {fault}" for name, fault in self.faults.items())


@dataclass(eq=False, kw_only=True)
class IdempotencyKeyMissing(WebError):
    """A money write came without its idempotency key."""

    header: str = "Idempotency-Key"

    def message(self) -> str:
        """Say which header to send, and what it is for."""
        return f"send {self.header}, so that a retry cannot charge twice"


@dataclass(eq=False, kw_only=True)
class IdempotencyKeyInvalid(WebError):
    """The header is there, but what it holds cannot be a key."""

    header: str = "Idempotency-Key"
    fault: str

    def message(self) -> str:
        """Say what is wrong with it."""
        return f"{self.header} {self.fault}"
