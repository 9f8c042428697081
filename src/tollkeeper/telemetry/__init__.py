"""Telemetry: structured logs, the metrics registry, what must not be seen in either."""
