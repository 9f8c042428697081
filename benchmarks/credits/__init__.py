"""Benchmarks of the ledger: engine, HTTP, growth, start-up, reads."""
