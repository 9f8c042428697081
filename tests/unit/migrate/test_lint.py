"""The rules for migrations that squawk does not have."""

import pytest

from tollkeeper.migrate.lint import findings
from tollkeeper.migrate.model import DATABASES
from tollkeeper.migrate.script import migration_from
from tollkeeper.migrate.service import shipped_migrations


def rules(up: str) -> list[tuple[int, str]]:
    migration = migration_from("credits", "0001_x.sql", f"-- up\n{up}\n")
    return [(finding.line, finding.rule) for finding in findings(migration)]


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE a PARTITION OF b FOR VALUES IN (1)",
        "create table a /* so */ partition\n-- why\nof only_b for values in (1)",
        "DO $$ BEGIN EXECUTE format('CREATE TABLE %I PARTITION OF %I', c, p); END $$",
        "CREATE FUNCTION f() RETURNS void LANGUAGE sql AS $x$ CREATE TABLE a PARTITION OF b $x$",
    ],
)
def test_partition_of_a_live_parent_is_found(sql: str) -> None:
    assert [(2, "partition-of-live-parent")] == rules(f"{sql};")


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE b (x int) PARTITION BY LIST (x); CREATE TABLE a PARTITION OF b DEFAULT",
        "CREATE TABLE a (LIKE b); ALTER TABLE b ATTACH PARTITION a FOR VALUES IN (1)",
        "SELECT 1 /* CREATE TABLE a PARTITION OF b */",
        "REFRESH MATERIALIZED VIEW CONCURRENTLY v",
        "CREATE MATERIALIZED VIEW v AS SELECT 1 WITH NO DATA; REFRESH MATERIALIZED VIEW v",
    ],
)
def test_what_stops_nobody_is_let_through(sql: str) -> None:
    assert [] == rules(f"{sql};")


@pytest.mark.parametrize(
    "sql",
    ["REFRESH MATERIALIZED VIEW v", "DO $$ BEGIN REFRESH MATERIALIZED\n VIEW v; END $$"],
)
def test_plain_refresh_is_found(sql: str) -> None:
    assert [(2, "plain-refresh")] == rules(f"{sql};")


def test_waiver_needs_a_reason() -> None:
    assert [(3, "waiver-without-reason")] == rules(
        "SELECT 1;\n-- squawk-ignore some-rule\nSELECT 2;"
    )
    assert [] == rules("-- Because.\n-- squawk-ignore some-rule\nSELECT 2;")


def test_what_ships_passes() -> None:
    shipped = [each for name in DATABASES for each in shipped_migrations(name)]

    assert [] == [str(finding) for each in shipped for finding in findings(each)]
    assert len(shipped) >= 12
