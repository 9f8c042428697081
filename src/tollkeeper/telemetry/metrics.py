"""The metrics registry of a process, and its Prometheus text.

Thin on purpose: instruments are made by the slices, from the registry they are passed. Nothing is
registered with the client library's global registry.

Several processes of a service may listen on one port (SO_REUSEPORT). Each has a registry of its
own, and a scrape is answered by one of them; `tollkeeper_process_info` says by which, so that a
jump between two answers can be told from a reset. To count all of them, scrape each process.
"""

import os

from prometheus_client import CollectorRegistry, Info
from prometheus_client.exposition import generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from tollkeeper import __version__

LATENCY_BUCKETS_S = (0.005, 0.012, 0.025, 0.045, 0.080, 0.100, 0.500, 1.0)
"""Edges of latency histograms, in seconds: the targets P50 12, P95 45 and P99 80 ms are edges."""

MEDIA_TYPE = "text/plain; version=0.0.4"
"""The format every Prometheus understands; Litestar adds the charset to what begins with text/."""


def build_registry(service: str) -> CollectorRegistry:
    """Build the registry of this process, with the process's own figures already in it."""
    registry = CollectorRegistry(auto_describe=True)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    process = Info("tollkeeper_process", "Which process answered.", registry=registry)
    process.info({"service": service, "pid": str(os.getpid()), "version": __version__})
    return registry


def exposition(registry: CollectorRegistry) -> tuple[bytes, str]:
    """Return the registry as text, and its media type."""
    return generate_latest(registry), MEDIA_TYPE
