"""The shadow service's instruments, every closed label set present from the start.

One gauge names experiments: `shadow_test_probability_best`, which is asked for by name. Its label
sets are bounded: the running experiments that were analysed last, `SHOWN_EXPERIMENTS` of them.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tollkeeper.kernel.errors import TollkeeperError
from tollkeeper.shadow import errors
from tollkeeper.shadow.model import ExperimentState, Exposed, OutcomeStatus, Recorded, Verdict
from tollkeeper.telemetry.metrics import LATENCY_BUCKETS_S

SHOWN_EXPERIMENTS = 100
"""Experiments whose probabilities are shown at a time."""

BATCH_SIZE_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000)
KINDS = ("assignment", "outcome")
REJECTIONS = ("queue_full", "draining", "database_down")
"""Why requests are not even accepted."""

DONE = {
    "assignment": ("assigned", "known"),
    "outcome": (*(status.name.lower() for status in OutcomeStatus), "duplicate"),
}
"""Labels of the ways that a request of each kind goes well."""

REFUSED: Mapping[type[TollkeeperError], str] = {
    errors.ExperimentNotFound: "experiment_not_found",
    errors.ExperimentNotRunning: "experiment_not_running",
    errors.EpochUnknown: "epoch_unknown",
    errors.MetricUnknown: "metric_unknown",
    errors.ValueInvalid: "value_invalid",
    errors.UnitNotExposed: "unit_not_exposed",
    errors.OutcomeReused: "outcome_reused",
    errors.ShadowUnavailable: "unavailable",
    errors.OutcomeFailed: "failed",
}
"""Label of each way that it does not."""

OTHERWISE = "refused"
"""Label of what is not known here by name."""


class ShadowMetrics:
    """What engine, decider and evaluator report; `shadow_*` in the exposition."""

    def __init__(self, registry: CollectorRegistry) -> None:
        requests = Counter(
            "shadow_requests", "Requests decided.", ("kind", "result"), registry=registry
        )
        self._requests = {
            (kind, result): requests.labels(kind, result)
            for kind in KINDS
            for result in (*DONE[kind], *REFUSED.values(), OTHERWISE)
        }
        latency = Histogram(
            "shadow_request_duration_seconds",
            "From acceptance into the queue to the result; kind `batch` is a whole list.",
            ("kind",),
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self._latency = {kind: latency.labels(kind) for kind in (*KINDS, "batch")}
        self._batch_size = Histogram(
            "shadow_batch_size",
            "Requests committed together.",
            buckets=BATCH_SIZE_BUCKETS,
            registry=registry,
        )
        retries = Counter(
            "shadow_retries", "Requests put back, by reason.", ("reason",), registry=registry
        )
        self._retries = {reason: retries.labels(reason) for reason in ("contention", "database")}
        rejected = Counter(
            "shadow_rejected", "Requests not accepted.", ("reason",), registry=registry
        )
        self._rejected = {reason: rejected.labels(reason) for reason in REJECTIONS}
        self._queue = Gauge(
            "shadow_queue_waiting", "Requests accepted and not yet decided.", registry=registry
        )
        self._decisions = DecisionMetrics(registry)

    @property
    def decisions(self) -> "DecisionMetrics":
        """What decider and evaluator report."""
        return self._decisions

    def watch_queue(self, depth: Callable[[], int]) -> None:
        """Read the queue's depth from `depth` whenever the metrics are scraped."""
        self._queue.set_function(depth)

    def batch_decided(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Count a decided batch: (kind, result) to requests."""
        for labels, count in counts.items():
            self._requests[labels].inc(count)

    def batch_taken(self, size: int) -> None:
        """Record how many requests are committed together."""
        self._batch_size.observe(size)

    def answered(self, kind: str, duration_s: float) -> None:
        """Record how long a caller waited for the engine."""
        self._latency[kind].observe(duration_s)

    def retried(self, reason: str, count: int) -> None:
        """Count requests put back for `contention` or `database`."""
        self._retries[reason].inc(count)

    def rejected(self, reason: str, count: int) -> None:
        """Count requests refused for one of `REJECTIONS`."""
        self._rejected[reason].inc(count)


class DecisionMetrics:
    """How experiments stand, and what the gate says."""

    def __init__(self, registry: CollectorRegistry) -> None:
        decisions = Counter(
            "shadow_decisions", "Decisions stored.", ("kind", "verdict"), registry=registry
        )
        self._decided = {
            (kind, verdict): decisions.labels(kind, verdict.value)
            for kind in ("look", "confirmation")
            for verdict in Verdict
        }
        deployments = Counter(
            "shadow_deployments", "Deployments asked for.", ("result",), registry=registry
        )
        self._deployments = {
            result: deployments.labels(result) for result in ("deployed", "refused", "rolled_back")
        }
        self._best = Gauge(
            "shadow_test_probability_best",
            "Probability that a variant is the best, of experiments analysed last.",
            ("experiment", "variant"),
            registry=registry,
        )
        self._shown: OrderedDict[str, tuple[str, ...]] = OrderedDict()
        experiments = Gauge(
            "shadow_experiments", "Experiments in each state.", ("state",), registry=registry
        )
        self._experiments = {state: experiments.labels(state.value) for state in ExperimentState}
        self._untested = Gauge(
            "shadow_deployments_without_testing",
            "Deployments that stand on no decision to deploy. Anything but 0 is an alarm.",
            registry=registry,
        )
        self._rate = Gauge(
            "shadow_gate_false_deploy_rate",
            "Share of A/A tests that a profile of the gate deployed when it was measured.",
            ("profile",),
            registry=registry,
        )
        self._overdue = Gauge(
            "shadow_looks_overdue", "Looks that are due and not taken.", registry=registry
        )

    def decided(self, kind: str, verdict: Verdict) -> None:
        """Count a stored decision: a `look` or a `confirmation`."""
        self._decided[kind, verdict].inc()

    def deployment(self, result: str) -> None:
        """Count what was `deployed`, `refused` or `rolled_back`."""
        self._deployments[result].inc()

    def show_best(self, experiment_id: str, probabilities: Mapping[str, float]) -> None:
        """Show an experiment's probabilities, by variant; the one shown longest ago makes room."""
        self.forget(experiment_id)
        while len(self._shown) >= SHOWN_EXPERIMENTS:
            self.forget(next(iter(self._shown)))
        self._shown[experiment_id] = tuple(probabilities)
        for variant, probability in probabilities.items():
            self._best.labels(experiment_id, variant).set(probability)

    def forget(self, experiment_id: str) -> None:
        """Show an experiment no more: it has ended."""
        for variant in self._shown.pop(experiment_id, ()):
            self._best.remove(experiment_id, variant)

    def keep(self, experiment_ids: Collection[str]) -> None:
        """Show no experiment any more but these: others have ended."""
        for experiment_id in [each for each in self._shown if each not in experiment_ids]:
            self.forget(experiment_id)

    def show_experiments(self, counts: Mapping[ExperimentState, int]) -> None:
        """Show how many experiments are in each state."""
        for state, gauge in self._experiments.items():
            gauge.set(counts.get(state, 0))

    def show_untested(self, count: int) -> None:
        """Show how many deployments stand on no decision."""
        self._untested.set(count)

    def show_overdue(self, count: int) -> None:
        """Show how many looks are due and not taken."""
        self._overdue.set(count)

    def show_rate(self, profile: str, rate: float) -> None:
        """Show the published false-deploy rate of a profile."""
        self._rate.labels(profile).set(rate)


def result_of(result: Exposed | Recorded | TollkeeperError) -> str:
    """Return the `result` label of what a request came to."""
    if type(result) is Recorded:
        return result.status.name.lower() if result.is_new else "duplicate"
    if type(result) is Exposed:
        return "assigned" if result.is_new else "known"
    assert isinstance(result, TollkeeperError)
    return REFUSED.get(type(result), OTHERWISE)
