"""Amounts of money: whole minor units that fit PostgreSQL's `bigint`. Never a float."""

MAX_AMOUNT_MINOR = 2**63 - 1
"""Largest amount and largest balance, in minor units: PostgreSQL's `bigint`."""
