"""How often who has no valid key may try: a token bucket per address, in bounded memory.

Pure: the time comes in. Not a limit on callers: whoever shows a valid key is never asked here.
A guess cannot succeed (256 random bits), so this is not what keeps a guesser out; it keeps scanners
and broken callers from filling the log, and tells them to stop.

Invariant: at most `ADDRESSES_LIMIT` addresses are remembered, whoever asks. Beyond that the one
that failed longest ago is forgotten, and starts anew.
"""

import math
from collections import OrderedDict
from ipaddress import IPv6Address

FAILURES_BURST = 100
"""Failures of one address that are answered at once."""

FAILURES_PER_S = 1.0
"""Failures of one address that are answered in the long run."""

ADDRESSES_LIMIT = 10_000
"""Addresses that are remembered: about 3 MB when all of them are attacking."""


class FailedAttempts:
    """Counts failures by address and says how long each has to wait."""

    __slots__ = ("_buckets",)

    def __init__(self) -> None:
        # Address -> (attempts left, when that was so); who failed last stands at the end.
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def wait_s(self, address: str, now_s: float) -> float:
        """Note a failure; return 0 when it is to be answered, else the seconds to wait for that."""
        place = _place_of(address)
        left, since_s = self._buckets.pop(place, (float(FAILURES_BURST), now_s))
        left = min(float(FAILURES_BURST), left + max(0.0, now_s - since_s) * FAILURES_PER_S)
        wait_s = 0.0
        if left >= 1.0:
            left -= 1.0
        else:
            wait_s = (1.0 - left) / FAILURES_PER_S
        self._buckets[place] = (left, now_s)
        if len(self._buckets) > ADDRESSES_LIMIT:
            self._buckets.popitem(last=False)
        return float(math.ceil(wait_s))


def _place_of(address: str) -> str:
    """Return what an attacker cannot vary for free: of IPv6, the network (/64) of a subscriber."""
    if ":" not in address:
        return address
    try:
        found = IPv6Address(address)
    except ValueError:
        return address
    return str(found.ipv4_mapped or int(found) >> 64)
