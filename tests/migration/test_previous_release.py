"""The release before on today's schema: it goes on serving while the schema moves under it.

A schema that was upgraded is, to the letter, the one that is made fresh.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from tests.acceptance.conftest import Service, clean_environment, running_service, tollkeeper
from tests.conftest import Databases
from tests.migrations import dump_of

PREVIOUS = Path(__file__).parent / "releases" / "previous.zip"
BEFORE = {"PYTHONPATH": str(PREVIOUS)}


@pytest.fixture
def dsns(databases: Databases) -> Iterator[dict[str, str]]:
    with databases.fresh() as credits_dsn, databases.fresh() as access_dsn:
        yield {"TOLLKEEPER_CREDITS_DSN": credits_dsn, "TOLLKEEPER_ACCESS_DSN": access_dsn}


def run_as_before(*arguments: str, dsns: dict[str, str]) -> "subprocess.CompletedProcess[bytes]":
    """Run a command of the release before."""
    return subprocess.run(
        [sys.executable, "-m", "tollkeeper", *arguments],
        env=clean_environment({**BEFORE, **dsns}), check=False, capture_output=True, timeout=60,
    )  # fmt: skip


def migrate(dsns: dict[str, str], folder: Path) -> None:
    done = tollkeeper("migrate", "up", environment={**dsns, "TOLLKEEPER_DATA": str(folder)})

    assert 0 == done.code, done.err


def post(client: httpx.Client, path: str, **body: object) -> dict[str, object]:
    answer = client.post(path, json=body, headers={"Idempotency-Key": str(uuid4())})
    assert answer.status_code in {200, 201}, answer.text
    result: dict[str, object] = answer.json()
    return result


def spend(service: Service, account: str) -> int:
    """Do one operation of each kind that every release knows; return what is left."""
    headers = {"Authorization": f"Bearer {service.api_key}"}
    with httpx.Client(base_url=f"{service.url}/v1", headers=headers, timeout=30) as client:
        post(client, f"/accounts/{account}/topups", amount=1_000)
        used = post(client, f"/accounts/{account}/consumptions", amount=300)
        hold = post(client, f"/accounts/{account}/holds", amount=200)
        post(client, f"/holds/{hold['hold_id']}/capture", amount=150, final=True)
        post(client, f"/transactions/{used['transaction_id']}/refunds", amount=50)
        left = client.get(f"/accounts/{account}").json()
        found = client.post("/audit/verify", json={"account_id": account}).json()
    assert (0, []) == (left["reserved"], found["faults"])
    balance: int = left["balance"]
    return balance


def test_release_before_goes_on_while_the_schema_moves(
    dsns: dict[str, str], tmp_path: Path
) -> None:
    assert 0 == run_as_before("migrate", dsns=dsns).returncode
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    places = (dsns["TOLLKEEPER_CREDITS_DSN"], dsns["TOLLKEEPER_ACCESS_DSN"])
    with running_service(*places, one, settings=BEFORE) as before:
        with httpx.Client(headers={"Authorization": f"Bearer {before.api_key}"}) as client:
            client.post(
                f"{before.url}/v1/accounts", json={"account_id": "ann", "tenant_id": "acme"}
            ).raise_for_status()
        assert 600 == spend(before, "ann")

        migrate(dsns, tmp_path)

        assert 1_200 == spend(before, "ann")
        with running_service(*places, two) as now:
            assert 1_800 == spend(now, "ann")
            assert 2_400 == spend(before, "ann")
            assert 3_000 == spend(now, "ann")
            ready = httpx.get(f"{before.url}/health/ready")
            assert 200 == ready.status_code, ready.text
    refused = run_as_before("migrate", dsns=dsns)
    assert (1, True) == (refused.returncode, b"use a newer Tollkeeper" in refused.stderr)


def test_release_before_is_really_another() -> None:
    program = "import tollkeeper; print(tollkeeper.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **BEFORE}, check=True,
        capture_output=True, text=True,
    )  # fmt: skip

    assert done.stdout.startswith(str(PREVIOUS))


async def test_upgraded_schema_is_the_fresh_one_to_the_letter(
    other_databases: Databases, tmp_path: Path
) -> None:
    with (
        other_databases.fresh() as upgraded,
        other_databases.fresh() as access,
        other_databases.fresh("credits") as fresh,
        other_databases.fresh("access") as fresh_access,
    ):
        dsns = {"TOLLKEEPER_CREDITS_DSN": upgraded, "TOLLKEEPER_ACCESS_DSN": access}
        await asyncio.to_thread(run_as_before, "migrate", dsns=dsns)
        await asyncio.to_thread(migrate, dsns, tmp_path)

        for one, other in ((fresh, upgraded), (fresh_access, access)):
            expected = await dump_of(one, "--schema-only")
            assert len(expected) > 100
            assert expected == await dump_of(other, "--schema-only")
