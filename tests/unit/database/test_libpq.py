"""What PostgreSQL's programs are told of a server."""

import pytest

from tollkeeper.database.dsn import Host, parse_dsn
from tollkeeper.database.libpq import client_environment, database_of, secrets_of, with_database

INHERITED = {"PATH": "/bin", "PGHOST": "elsewhere", "PGOPTIONS": "-c x=y", "PGSSLMODE": "allow"}


def environment(dsn: str, host: Host) -> dict[str, str]:
    return client_environment(
        parse_dsn(dsn), host=host, user="ann", database="ledger", inherited=INHERITED
    )


def test_all_that_a_program_needs_is_in_its_environment() -> None:
    dsn = "postgresql://ann:p%40ss@one,two:6000/x?sslmode=verify-full&sslrootcert=/ca&connect_timeout=3"

    assert {
        "PATH": "/bin",
        "PGHOST": "two",
        "PGPORT": "6000",
        "PGUSER": "ann",
        "PGDATABASE": "ledger",
        "PGPASSWORD": "p@ss",
        "PGSSLMODE": "verify-full",
        "PGSSLROOTCERT": "/ca",
        "PGCONNECT_TIMEOUT": "3",
        "LC_ALL": "C",
    } == environment(dsn, Host(name="two", port=6000))


def test_the_password_is_the_secret() -> None:
    known = environment("postgresql:///x?password=hidden&host=/run/pg", Host(name="/run/pg"))

    assert ("hidden",) == secrets_of(known)
    assert ("/run/pg", "5432", "allow") == (known["PGHOST"], known["PGPORT"], known["PGSSLMODE"])


@pytest.mark.parametrize(
    ("dsn", "database"),
    [
        ("postgresql://h/led%20ger", "led ger"),
        ("postgresql://h/?dbname=ledger", "ledger"),
        ("postgresql:///?database=ledger&host=/run", "ledger"),
        ("postgresql://h", None),
    ],
)
def test_the_database_that_a_dsn_names(dsn: str, database: str | None) -> None:
    assert database == database_of(parse_dsn(dsn), {})
    assert (database or "other") == database_of(parse_dsn(dsn), {"PGDATABASE": "other"})


@pytest.mark.parametrize(
    ("dsn", "other"),
    [
        (
            "postgresql://a:p%40@h1,h2:6/x?sslmode=require",
            "postgresql://a:p%40@h1,h2:6/y%2F%20?sslmode=require",
        ),
        ("postgresql:///?host=/run&dbname=x", "postgresql:///y%2F%20?host=/run"),
        ("postgres://h", "postgres://h/y%2F%20"),
    ],
)
def test_a_dsn_is_led_to_another_database(dsn: str, other: str) -> None:
    assert other == with_database(parse_dsn(dsn), "y/ ")
    assert "y/ " == database_of(parse_dsn(other), {})
