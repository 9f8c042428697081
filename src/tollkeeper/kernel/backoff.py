"""Exponential backoff with jitter, as a pure function of the attempt and one random number."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """`first_ms * 2^attempt + jitter`, at most `ceiling_ms`, at most `retries` times (SPEC C2)."""

    first_ms: float = 10.0
    ceiling_ms: float = 2_000.0
    retries: int = 5

    def __post_init__(self) -> None:
        if self.first_ms <= 0 or self.ceiling_ms < self.first_ms or self.retries < 0:
            raise ValueError("a backoff needs 0 < first_ms <= ceiling_ms and retries >= 0")

    def wait_ms(self, attempt: int, jitter: float) -> float:
        """Return the wait before retry `attempt` (0 is the first); `jitter` is in [0, 1).

        The jitter adds up to one more first step, so that two losers do not meet again.
        """
        return min(self.ceiling_ms, self.first_ms * 2.0**attempt + jitter * self.first_ms)
