"""The instruments of keys: read when scraped, so that checking a key pays for an addition only."""

from collections.abc import Callable, Iterable
from types import MappingProxyType

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from tollkeeper.access.errors import KeyExpired, KeysUnavailable, KeyUnknown
from tollkeeper.web.auth import AuthenticationTally
from tollkeeper.web.errors import NotAuthenticated, TooManyFailures

RESULTS = MappingProxyType(
    {
        NotAuthenticated: "missing",
        KeyUnknown: "unknown",
        KeyExpired: "expired",
        KeysUnavailable: "unavailable",
        TooManyFailures: "limited",
    }
)
"""Label of each way an authentication can fail; one that succeeds is `ok`."""


class AccessCollector(Collector):
    """Exposes `access_*`: how authentications ended, and how fresh the keys in memory are."""

    def __init__(
        self,
        tally: AuthenticationTally,
        registry: CollectorRegistry,
        *,
        age_s: Callable[[], float],
        held: Callable[[], int],
    ) -> None:
        self._tally = tally
        self._age_s = age_s
        self._held = held
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """Read all figures now."""
        authentications = CounterMetricFamily(
            "access_authentications", "Requests by how their key was judged.", labels=("result",)
        )
        authentications.add_metric(("ok",), self._tally.accepted)
        for error, result in RESULTS.items():
            authentications.add_metric((result,), self._tally.refused[error])
        age = GaugeMetricFamily(
            "access_keys_age_seconds", "Since the keys in memory were last known to be current."
        )
        age.add_metric((), self._age_s())
        held = GaugeMetricFamily("access_keys", "Keys in memory, expired ones of a week included.")
        held.add_metric((), self._held())
        return [authentications, age, held]
