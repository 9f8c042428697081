"""Every named query is understood by the schema it is meant for, and is used."""

import re
from pathlib import Path

import asyncpg
import pytest

from tollkeeper.database.queries import load_queries

SOURCES = Path(__file__).parents[2] / "src" / "tollkeeper"
PACKAGES = sorted(path.parents[1].name for path in SOURCES.glob("*/sql/queries.sql"))
DATABASES = {"access": "access_dsn"}
"""The database of a package's queries, where it is not that of the ledger."""
SCRIPTS = {"create_database", "create_log"}
"""Several commands in one block: these cannot be prepared; starting and migrating runs them."""


def test_the_packages_with_queries_are_found() -> None:
    assert {"access", "credits", "migrate"} <= set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
async def test_every_query_prepares(package: str, request: pytest.FixtureRequest) -> None:
    dsn = request.getfixturevalue(DATABASES.get(package, "credits_dsn"))
    connection = await asyncpg.connect(dsn)
    try:
        for name, text in load_queries(f"tollkeeper.{package}").items():
            if name not in SCRIPTS:
                await connection.prepare(text)
    finally:
        await connection.close()


@pytest.mark.parametrize("package", PACKAGES)
def test_no_query_is_sent_with_a_comment(package: str) -> None:
    """A parameter that the driver wrote into one could end it."""
    assert "--" not in "".join(load_queries(f"tollkeeper.{package}").values())


@pytest.mark.parametrize("package", PACKAGES)
def test_every_query_is_used(package: str) -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (SOURCES / package).glob("*.py"))

    used = set(re.findall(r'(?:_sql|_queries|\))\["(\w+)"\]', code))

    assert set(load_queries(f"tollkeeper.{package}")) == used
