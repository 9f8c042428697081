"""Errors of the ledger.

CreditsError
├── Refusal                       the ledger said no; nothing was written, no key was kept
│   ├── AccountNotFound
│   ├── AccountTaken              the account belongs to another tenant
│   ├── TenantNotFound            it has no account
│   ├── InsufficientCredits
│   ├── BalanceTooLarge           the balance would pass 63 bits
│   ├── HoldNotFound
│   ├── HoldClosed                it is settled or expired
│   ├── CaptureTooLarge           more than the hold and its allowance
│   ├── TransactionNotFound
│   ├── TransactionVanished       the key made one that is not in the ledger any more
│   ├── NotRefundable             neither a consumption nor a capture
│   ├── RefundTooLarge            more than was taken and not given back yet
│   ├── AccountFrozen             it is not what its transactions say: nothing moves
│   ├── NotFrozen                 there is no freeze to lift
│   ├── UnfreezeUnsafe            where its chain ends, the account cannot stand
│   ├── KeyReused                 the same key brought another request
│   └── KeyExpired                a UUIDv7 key older than the keys' lifetime, or from the future
├── AlertNotFound                 or it is another tenant's
├── InvalidRequest                a field that cannot be; `problems` names each
└── Busy                          try again later, with the same key
    ├── QueueFull
    ├── Draining
    ├── LedgerUnavailable         retries are used up
    ├── VerificationRunning       one verification at a time
    └── ExportsRunning            so many exports at a time

CreditsError, of the audit
├── CheckpointNotFound
└── NotCheckpointed               no checkpoint covers the transaction yet

OperationFailed                   (TollkeeperError) no rule said so: an internal error
NoteInvalid                       (TollkeeperError) a note, a key or a checkpoint that is none
LeavesUnexplained                 (TollkeeperError) leaves that no checkpoint was made over
PublicationFailed                 (TollkeeperError) a note could not be published outside
"""

from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from tollkeeper.kernel.errors import TollkeeperError
from tollkeeper.kernel.ids import AccountId, TenantId, TransactionId


@dataclass(eq=False, kw_only=True)
class CreditsError(TollkeeperError):
    """Base of the ledger's errors."""


@dataclass(eq=False, kw_only=True)
class Refusal(CreditsError):
    """A rule of the ledger refused the operation; it left no trace."""


@dataclass(eq=False, kw_only=True)
class AccountNotFound(Refusal):
    """No such account, or not one of the caller's tenant."""

    account_id: AccountId

    def message(self) -> str:
        """Name the account."""
        return f"there is no account {self.account_id}; open it first"


@dataclass(eq=False, kw_only=True)
class AccountTaken(Refusal):
    """The account exists and belongs to another tenant."""

    account_id: AccountId

    def message(self) -> str:
        """Name the account, but not its tenant."""
        return f"account {self.account_id} exists and belongs to another tenant"


@dataclass(eq=False, kw_only=True)
class TenantNotFound(Refusal):
    """No account is this tenant's, or the caller's key is another tenant's."""

    tenant_id: TenantId

    def message(self) -> str:
        """Name the tenant, and say what makes one."""
        return f"tenant {self.tenant_id} has no account; the first one that is opened makes it"


@dataclass(eq=False, kw_only=True)
class InsufficientCredits(Refusal):
    """The account has less available than required (both in minor units)."""

    account_id: AccountId
    available: int
    required: int

    def message(self) -> str:
        """Say what is there and what was needed."""
        return f"account {self.account_id} has {self.available} available, {self.required} required"


@dataclass(eq=False, kw_only=True)
class BalanceTooLarge(Refusal):
    """The balance would no longer fit into 63 bits."""

    account_id: AccountId
    balance: int
    amount: int

    def message(self) -> str:
        """Say which sum is too large."""
        return (
            f"the balance of {self.account_id} would pass 63 bits: {self.balance} + {self.amount}"
        )


@dataclass(eq=False, kw_only=True)
class HoldNotFound(Refusal):
    """No such hold, or not one of this account or of the caller's tenant."""

    hold_id: TransactionId

    def message(self) -> str:
        """Name the hold."""
        return f"there is no hold {self.hold_id}"


@dataclass(eq=False, kw_only=True)
class HoldClosed(Refusal):
    """Nothing is reserved by the hold any more; `state` says why."""

    hold_id: TransactionId
    state: str

    def message(self) -> str:
        """Say what became of the hold."""
        return f"hold {self.hold_id} is {self.state}: nothing is reserved by it any more"


@dataclass(eq=False, kw_only=True)
class CaptureTooLarge(Refusal):
    """More than what is left of the hold and its allowance (both in minor units)."""

    hold_id: TransactionId
    capturable: int
    amount: int

    def message(self) -> str:
        """Say how much may be captured."""
        return (
            f"{self.capturable} may be captured of hold {self.hold_id}, its allowance included, "
            f"and not {self.amount}"
        )


@dataclass(eq=False, kw_only=True)
class TransactionNotFound(Refusal):
    """No such transaction, or not one of this account or of the caller's tenant."""

    transaction_id: TransactionId

    def message(self) -> str:
        """Name the transaction."""
        return f"there is no transaction {self.transaction_id}"


@dataclass(eq=False, kw_only=True)
class TransactionVanished(Refusal):
    """The key made a transaction that is not in the ledger any more: somebody took it away."""

    account_id: AccountId

    def message(self) -> str:
        """Say what is known, and what to do."""
        return (
            f"this request was booked on account {self.account_id}, and its transaction is gone "
            "from the ledger; nothing was done: verify the account, then use a new key"
        )


@dataclass(eq=False, kw_only=True)
class NotRefundable(Refusal):
    """The transaction took nothing that could be given back."""

    transaction_id: TransactionId
    kind: str

    def message(self) -> str:
        """Say what may be refunded."""
        return (
            f"transaction {self.transaction_id} is a {self.kind}; consumptions and captures can be "
            "refunded"
        )


@dataclass(eq=False, kw_only=True)
class RefundTooLarge(Refusal):
    """More than was taken and not given back yet (both in minor units)."""

    transaction_id: TransactionId
    refundable: int
    amount: int

    def message(self) -> str:
        """Say how much may be refunded."""
        return (
            f"{self.refundable} of transaction {self.transaction_id} can still be refunded, "
            f"and not {self.amount}"
        )


@dataclass(eq=False, kw_only=True)
class AccountFrozen(Refusal):
    """Reconciliation found the account at odds with its transactions; `faults` says where."""

    account_id: AccountId
    frozen_at: datetime
    faults: tuple[str, ...]

    def message(self) -> str:
        """Say since when, what was found, and what to do."""
        found = f" ({', '.join(self.faults)})" if self.faults else ""
        since = self.frozen_at.isoformat(timespec="seconds").replace("+00:00", "Z")
        return (
            f"account {self.account_id} is frozen since {since}: it is not what its transactions "
            f"say{found}. It can be read, and nothing moves until an operator has looked into it "
            "and lifted the freeze: `tollkeeper credits unfreeze`"
        )


@dataclass(eq=False, kw_only=True)
class NotFrozen(Refusal):
    """There is no freeze to lift."""

    account_id: AccountId

    def message(self) -> str:
        """Name the account."""
        return f"account {self.account_id} is not frozen"


@dataclass(eq=False, kw_only=True)
class UnfreezeUnsafe(Refusal):
    """The account would stand at the end of its chain, and cannot."""

    account_id: AccountId
    problem: str

    def message(self) -> str:
        """Say what does not agree, and what to do."""
        return (
            f"the freeze of account {self.account_id} is not lifted: {self.problem}. Repair these "
            "rows in the database first, see docs/guide/audit.md"
        )


@dataclass(eq=False, kw_only=True)
class KeyReused(Refusal):
    """The idempotency key was used for another request on this account."""

    account_id: AccountId

    def message(self) -> str:
        """Say what to do."""
        return (
            f"this Idempotency-Key was used for another request on account {self.account_id}; "
            "use a new key for a new request"
        )


@dataclass(eq=False, kw_only=True)
class KeyExpired(Refusal):
    """A UUIDv7 key whose time is outside the keys' lifetime: it may have been charged long ago."""

    age_s: float
    lifetime_s: float

    def message(self) -> str:
        """Say how old the key is and why that matters."""
        if self.age_s < 0:
            return (
                f"this Idempotency-Key is dated {-self.age_s:.0f} s in the future; check the clock"
            )
        return (
            f"this Idempotency-Key is {self.age_s:.0f} s old, keys live {self.lifetime_s:.0f} s: "
            "it may have been charged; look at the account's history before using a new key"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldProblem:
    """What is wrong with one field of a request."""

    field: str
    detail: str


@dataclass(eq=False, kw_only=True)
class InvalidRequest(CreditsError):
    """One or more fields cannot be accepted as they stand."""

    errors: tuple[FieldProblem, ...]

    def message(self) -> str:
        """Name every field with its problem."""
        return "; ".join(f"{problem.field}: {problem.detail}" for problem in self.errors)


@dataclass(eq=False, kw_only=True)
class AlertNotFound(CreditsError):
    """No such alert, or not one of the caller's tenant."""

    alert_id: UUID

    def message(self) -> str:
        """Name the alert."""
        return f"there is no alert {self.alert_id}; `GET /v1/alerts?state=all` lists them"


@dataclass(eq=False, kw_only=True)
class Busy(CreditsError):
    """Not now; the same request with the same key is safe to send again."""

    retry_after_s: int = field(default=1)


@dataclass(eq=False, kw_only=True)
class QueueFull(Busy):
    """More operations wait than the engine's bound allows."""

    waiting: int
    limit: int

    def message(self) -> str:
        """Say how many wait."""
        return f"{self.waiting} operations wait of at most {self.limit}; send this again later"


@dataclass(eq=False, kw_only=True)
class Draining(Busy):
    """The service is going away and accepts nothing new."""

    def message(self) -> str:
        """Say that another instance should be asked."""
        return "this service is shutting down; send this again"


@dataclass(eq=False, kw_only=True)
class LedgerUnavailable(Busy):
    """The retries are used up. The operation may have been committed: the key tells."""

    attempts: int
    reason: str

    def message(self) -> str:
        """Say that the same key resolves the outcome."""
        return (
            f"the ledger could not answer in {self.attempts} attempts ({self.reason}); "
            "send the same request with the same key to learn the outcome"
        )


@dataclass(eq=False, kw_only=True)
class VerificationRunning(Busy):
    """Another verification runs in this process."""

    def message(self) -> str:
        """Say what to do."""
        return "another verification is running; try again when it has ended"


@dataclass(eq=False, kw_only=True)
class ExportsRunning(Busy):
    """As many exports run in this process as it allows."""

    limit: int

    def message(self) -> str:
        """Say what to do."""
        return f"{self.limit} exports are running; try again when one of them has ended"


@dataclass(eq=False, kw_only=True)
class CheckpointNotFound(CreditsError):
    """There is no checkpoint of this number."""

    number: int

    def message(self) -> str:
        """Name the number."""
        return f"there is no checkpoint {self.number}"


@dataclass(eq=False, kw_only=True)
class NotCheckpointed(CreditsError):
    """The transaction is newer than the last checkpoint, or the worker makes none."""

    transaction_id: TransactionId

    def message(self) -> str:
        """Say what to do."""
        return (
            f"no checkpoint covers transaction {self.transaction_id} yet; the worker makes one "
            "every TOLLKEEPER_CHECKPOINT_PERIOD_S seconds when it has a TOLLKEEPER_CHECKPOINT_KEY"
        )


@dataclass(eq=False, kw_only=True)
class OperationFailed(TollkeeperError):
    """One operation failed for a reason that nobody foresaw, which is its cause."""

    account_id: AccountId

    def message(self) -> str:
        """Name the account."""
        return f"an operation on account {self.account_id} failed; the log says why"


@dataclass(eq=False, kw_only=True)
class NoteInvalid(TollkeeperError):
    """A text is not the note, the key or the checkpoint that it should be."""

    problem: str

    def message(self) -> str:
        """Return the problem."""
        return self.problem


@dataclass(eq=False, kw_only=True)
class LeavesUnexplained(TollkeeperError):
    """Leaves are there that the maker of the checkpoint did not write: it signs nothing."""

    number: int
    leaves: int

    def message(self) -> str:
        """Say what is there, how it can have come there, and where to read on."""
        return (
            f"checkpoint {self.number} is not signed: {self.leaves} leaves of it, or of later "
            "ones, were written by somebody else, or their checkpoint was taken away; see "
            "docs/guide/audit.md"
        )


@dataclass(eq=False, kw_only=True)
class PublicationFailed(TollkeeperError):
    """A target does not take a note, or what stands there does not agree with the table."""

    place: str
    problem: str

    def message(self) -> str:
        """Name the place and the reason."""
        return f"checkpoints are not published to {self.place}: {self.problem}"
