import os

from prometheus_client import Counter
from prometheus_client.parser import text_string_to_metric_families

from tollkeeper.telemetry.metrics import LATENCY_BUCKETS_S, build_registry, exposition


def test_registry_tells_which_process_answered() -> None:
    text, content_type = exposition(build_registry("credits"))

    families = {family.name: family for family in text_string_to_metric_families(text.decode())}
    labels = families["tollkeeper_process_info"].samples[0].labels
    assert ("credits", str(os.getpid())) == (labels["service"], labels["pid"])
    assert "python_info" in families
    assert "python_gc_objects_collected" in families
    assert content_type.startswith("text/plain")


def test_registries_are_independent() -> None:
    first, second = build_registry("credits"), build_registry("credits")
    Counter("credits_operations", "Operations.", registry=first).inc()

    assert b"credits_operations_total 1.0" in exposition(first)[0]
    assert b"credits_operations" not in exposition(second)[0]


def test_targets_are_bucket_edges() -> None:
    assert {0.012, 0.045, 0.080} <= set(LATENCY_BUCKETS_S)
    assert tuple(sorted(LATENCY_BUCKETS_S)) == LATENCY_BUCKETS_S
