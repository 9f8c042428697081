"""Telemetry: structured logs and the metrics registry."""
