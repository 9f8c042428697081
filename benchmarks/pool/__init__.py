"""Benchmarks of the database pool."""
