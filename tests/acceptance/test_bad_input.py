"""Bad input at start: one clear sentence, a non-zero exit, no secret. And life with a pooler."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx
import pytest
from tests.acceptance.conftest import free_port, running_service, tollkeeper
from tests.conftest import Databases, run
from tests.greetings import answering, old_postgresql
from tests.passwords import require_password, unknown_host
from tests.pgbouncer import running_pgbouncer

from tollkeeper import up
from tollkeeper.config import Settings
from tollkeeper.database.pooler import Pooler
from tollkeeper.kernel.errors import ConfigurationError

SECRET = "Hidden1"
SERVE = ("serve", "credits")
WORK = ("worker",)
MIGRATE = ("migrate", "up", "credits")


def refused(
    arguments: Sequence[str], credits_dsn: str, *, access_dsn: str | None = None, **more: str
) -> str:
    """Return the one sentence that a command ends with."""
    environment: Mapping[str, str] = {
        "TOLLKEEPER_CREDITS_DSN": credits_dsn,
        "TOLLKEEPER_ACCESS_DSN": access_dsn or credits_dsn,
        "TOLLKEEPER_CREDITS_PORT": str(free_port()),
        **more,
    }
    ended = tollkeeper(*arguments, environment=environment)
    assert 1 == ended.code, ended
    assert "" == ended.out
    said = [line for line in ended.err.splitlines() if not line.startswith("{")]
    assert 1 == len(said), ended.err
    assert SECRET not in ended.err
    return said[0].removeprefix("tollkeeper: ")


@pytest.mark.parametrize("arguments", [SERVE, MIGRATE])
def test_dsn_that_does_not_parse(arguments: Sequence[str]) -> None:
    said = refused(arguments, f"postgresql://ann:{SECRET}/@db/credits")

    assert (
        "TOLLKEEPER_CREDITS_DSN cannot be understood (percent-encode special characters of a "
        "password: @ is %40, / is %2F)." == said
    )


def test_unknown_host() -> None:
    host = unknown_host()
    said = refused(SERVE, f"postgresql://ann:{SECRET}@{host}/credits")

    assert f"TOLLKEEPER_CREDITS_DSN: the host {host}:5432 is not known." == said


def test_wrong_password(empty_dsn: str) -> None:
    run(lambda: required(empty_dsn))
    wrong = empty_dsn.replace("tollkeeper@", f"needs_password:{SECRET}@")
    said = refused(SERVE, empty_dsn, access_dsn=wrong)  # the other one is right

    assert said.startswith("TOLLKEEPER_ACCESS_DSN: ")
    assert said.endswith(
        'does not let us in: password authentication failed for user "needs_password".'
    )


async def required(dsn: str) -> None:
    await require_password(dsn)


@pytest.mark.parametrize("arguments", [WORK, MIGRATE])
def test_database_that_does_not_exist(empty_dsn: str, arguments: Sequence[str]) -> None:
    said = refused(arguments, empty_dsn.replace("?", "_missing?"))

    assert said.startswith("TOLLKEEPER_CREDITS_DSN: database ")
    assert said.endswith("does not exist: create it with createdb, or correct its name.")


def test_first_key_where_nobody_may_log_in(empty_dsn: str) -> None:
    dsn = empty_dsn.replace("tollkeeper@", "nobody_here@")
    said = refused(("keys", "create", "operator", "--first"), dsn)

    assert said.startswith("TOLLKEEPER_ACCESS_DSN: ")
    assert said.endswith('does not let us in: role "nobody_here" does not exist.')


def test_server_that_is_too_old() -> None:
    with answering(old_postgresql("14.9")) as port:
        said = refused(MIGRATE, f"postgresql://ann@127.0.0.1:{port}/credits")

    assert (
        "TOLLKEEPER_CREDITS_DSN: PostgreSQL 14.9 is too old: Tollkeeper needs 15 or newer." == said
    )


def test_fewest_connections_above_most() -> None:
    said = refused(SERVE, "postgresql://ann@db/credits", TOLLKEEPER_POOL_MIN="9")

    assert "TOLLKEEPER_POOL_MIN must not exceed TOLLKEEPER_POOL_SIZE." == said


@pytest.mark.parametrize(
    ("arguments", "who"), [(WORK, "The worker"), (MIGRATE, "`tollkeeper migrate`")]
)
def test_pooler_where_a_session_is_needed(arguments: Sequence[str], who: str) -> None:
    said = refused(arguments, "postgresql://ann@db/credits", TOLLKEEPER_POOLER="pgbouncer")

    assert (
        f"{who} holds locks of a session: give it a DSN that leads to PostgreSQL itself, and "
        "TOLLKEEPER_POOLER=none." == said
    )


def test_pooler_where_everything_is_started() -> None:
    with pytest.raises(ConfigurationError, match=r"^`tollkeeper up` holds locks of a session"):
        up._check(Settings(pooler=Pooler.PGBOUNCER), processes=1)


def test_service_behind_pgbouncer_serves(databases: Databases, tmp_path: Path) -> None:
    with (
        databases.fresh("credits") as credits_dsn,
        databases.fresh("access") as access_dsn,
        running_pgbouncer(credits_dsn, server_connections=2) as pooled_credits,
        running_pgbouncer(access_dsn, server_connections=1) as pooled_access,
    ):
        pooled = {
            "TOLLKEEPER_CREDITS_DSN": pooled_credits,
            "TOLLKEEPER_ACCESS_DSN": pooled_access,
            "TOLLKEEPER_POOLER": "pgbouncer",
        }
        with (
            running_service(credits_dsn, access_dsn, tmp_path, settings=pooled) as service,
            httpx.Client(
                base_url=service.url, headers={"Authorization": f"Bearer {service.api_key}"}
            ) as client,
        ):
            client.post("/v1/accounts", json={"account_id": "ann", "tenant_id": "acme"})
            for number, (what, amount) in enumerate((("topups", 100), ("consumptions", 30))):
                answer = client.post(
                    f"/v1/accounts/ann/{what}",
                    json={"amount": amount},
                    headers={"Idempotency-Key": f"key-{number}"},
                )
                assert 201 == answer.status_code, answer.text
            balance = client.get("/v1/accounts/ann").json()["balance"]
        second = tollkeeper("keys", "create", "x", "--first", "--force", environment=pooled)

    assert 70 == balance
    assert 0 == second.code, second
