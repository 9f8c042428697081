"""Measures Tollkeeper on the machine it runs on; never part of the tests.

`python -m benchmarks [--quick] [--only NAME] [--json]` starts a PostgreSQL of its own in a
temporary directory with the settings `tollkeeper up` uses, measures, prints a table and ends what
it started.

Every comparison is made in pairs, side by side in one run, several rounds, and the median counts:
machines are noisy, ratios of neighbours are not. Absolute figures hold for the machine and the load
that are saved with them in `benchmarks/results/`.
"""
