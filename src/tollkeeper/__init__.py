"""Tollkeeper: prepaid credits that cannot go negative, on nothing but PostgreSQL."""

from importlib.metadata import version

__version__ = version("tollkeeper")
