"""How requests ended, in the exposition: read when scraped, every label set from the start."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from tollkeeper.web.request_log import RequestTally

CLASSES = {0: "none", 1: "1xx", 2: "2xx", 3: "3xx", 4: "4xx", 5: "5xx"}
"""Label of each class of statuses; `none` when a request ended without an answer."""


class RequestCollector(Collector):
    """Exposes a `RequestTally` as `web_*`."""

    def __init__(self, tally: RequestTally, registry: CollectorRegistry) -> None:
        self._tally = tally
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """Read all figures now."""
        requests = CounterMetricFamily(
            "web_requests", "Requests by the class of their answer's status.", labels=("status",)
        )
        for number, label in CLASSES.items():
            requests.add_metric((label,), self._tally.by_class[number])
        not_logged = CounterMetricFamily(
            "web_requests_not_logged", "Requests without a line: the log's budget was spent."
        )
        not_logged.add_metric((), self._tally.not_logged)
        return [requests, not_logged]
