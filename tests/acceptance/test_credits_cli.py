"""`tollkeeper credits ...` as an operator types it: output, JSON, exit codes."""

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from tests.acceptance.conftest import Service, clean_environment, execute, tollkeeper
from tests.unit.client.network import answer, peer


def test_a_life_of_an_account(service: Service) -> None:
    opened = service.run("credits", "open", "acme", "--tenant", "acme-inc", "--json")
    topped = service.run("credits", "topup", "acme", "1000", "--key", "k1", "--json")
    again = service.run("credits", "topup", "acme", "1000", "--key", "k1", "--json")
    spent = service.run("credits", "consume", "acme", "250", "--description", "one run")
    balance = service.run("credits", "balance", "acme", "--json")

    assert [each.code for each in (opened, topped, again, spent, balance)] == [0] * 5
    assert opened.json()["tenant_id"] == "acme-inc"
    assert topped.json()["replayed"] is False
    assert again.json()["replayed"] is True
    assert again.json()["transaction"] == topped.json()["transaction"]
    assert "balance after" in spent.out
    assert "750" in spent.out
    assert balance.json()["balance"] == 750

    refused = service.run("credits", "consume", "acme", "751")
    as_json = service.run("credits", "consume", "acme", "751", "--json")

    assert refused.code == as_json.code == 3
    assert refused.out == as_json.out == ""
    assert "750 available, 751 required" in refused.err
    assert refused.err.count("\n") == 1
    assert as_json.problem()["type"] == "urn:tollkeeper:problem:insufficient-credits"
    assert as_json.problem()["available"] == 750

    clean = service.run("credits", "verify", "acme", "--json")

    assert clean.code == 0
    assert (clean.json()["accounts"], clean.json()["transactions"]) == (1, 2)
    assert clean.json()["faults"] == []


def test_the_history_pages(service: Service) -> None:
    service.run("credits", "open", "paged", "--tenant", "acme-inc")
    for amount in ("10", "20", "30"):
        service.run("credits", "topup", "paged", amount)
    first = service.run("credits", "history", "paged", "--limit", "2", "--json").json()
    rest = service.run(
        "credits", "history", "paged", "--after", str(first["next"]), "--json"
    ).json()
    table = service.run("credits", "history", "paged", "--limit", "1", "--all")

    assert isinstance(first["items"], list)
    assert isinstance(rest["items"], list)
    assert [each["amount"] for each in first["items"]] == [10, 20]
    assert [each["amount"] for each in rest["items"]] == [30]
    assert rest["next"] is None
    assert table.code == 0
    assert [line.split()[-1] for line in table.out.splitlines()[-3:]] == ["10", "30", "60"]


def test_the_whole_history_is_a_transaction_a_line(service: Service) -> None:
    service.run("credits", "open", "lines", "--tenant", "acme-inc")
    for amount in ("10", "20", "30"):
        service.run("credits", "topup", "lines", amount)
    whole = service.run("credits", "history", "lines", "--limit", "2", "--all", "--json")
    rest = service.run("credits", "history", "lines", "--after", "2", "--all", "--json")

    assert (0, 0) == (whole.code, rest.code)
    assert [10, 20, 30] == [json.loads(line)["amount"] for line in whole.out.splitlines()]
    assert whole.out.endswith(rest.out)
    assert 1 == rest.out.count("\n")


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_long_history_is_printed_while_it_is_read(service: Service, options: list[str]) -> None:
    """What is added after its beginning was printed, and while the reader waits, is printed too."""
    name = f"long-{len(options)}"
    service.run("credits", "open", name, "--tenant", "acme-inc")
    fill(service, name, transactions=3_000)
    command = [sys.executable, "-m", "tollkeeper", "credits", "history", name, "--all"]
    with subprocess.Popen(
        [*command, "--limit", "100", *options],
        env=clean_environment(service.environment),
        stdout=subprocess.PIPE,
        text=True,
    ) as reading:
        assert reading.stdout is not None
        first = reading.stdout.readline()
        # 3,000 lines do not fit into the pipe, so it cannot have read to the end.
        added = service.run("credits", "topup", name, "1", "--description", "the last one")
        lines = [first, *reading.stdout]

    assert (0, 0) == (added.code, reading.returncode)
    assert 3_001 == sum("topup" in line for line in lines)
    assert "the last one" in lines[-1]


def fill(service: Service, account: str, *, transactions: int) -> None:
    """Top an account up many times."""
    operations = [
        {"op": "topup", "account_id": account, "idempotency_key": f"{number}", "amount": 1}
        for number in range(transactions)
    ]
    answer = httpx.post(
        f"{service.url}/v1/batch",
        json={"operations": operations},
        headers={"Authorization": f"Bearer {service.api_key}"},
        timeout=60,
    )
    assert {201} == {result["status"] for result in answer.json()["results"]}


def test_what_is_not_there_and_what_makes_no_sense(service: Service) -> None:
    assert service.run("credits", "balance", "nobody").code == 3
    assert service.run("credits", "topup", "nobody", "0").code == 2
    assert service.run("credits", "topup", "nobody", "many").code == 2
    assert service.run("credits").code == 2
    for wrong in (
        ["balance", "\udcff"],
        ["balance", "a/b"],
        ["topup", "x", "5", "--key", "\udcff"],
    ):
        said = service.run("credits", *wrong)
        assert (said.code, said.out, said.err.count("\n")) == (1, "", 1), said.err
    wrong_key = service.run("credits", "verify", environment={"TOLLKEEPER_API_KEY": "tk_wrong"})

    assert wrong_key.code == 1
    assert wrong_key.err.count("\n") == 1


async def test_verify_finds_an_edited_row(service: Service) -> None:
    service.run("credits", "open", "edited", "--tenant", "acme-inc")
    service.run("credits", "topup", "edited", "10")
    await _edit(
        service.credits_dsn,
        "UPDATE credit_transactions SET amount = amount + 1 WHERE account_id = 'edited'",
    )
    found = service.run("credits", "verify", "edited")
    as_json = service.run("credits", "verify", "--json")

    assert found.code == as_json.code == 4
    assert "edited" in found.out
    assert as_json.json()["faults"]


@pytest.mark.parametrize("is_wrong", [True, False])
async def test_a_verification_that_fails_on_its_way_shows_what_it_found(is_wrong: bool) -> None:
    sums = {"accounts": 1, "transactions": 2, "topped_up": 9, "consumed": 4, "balance": 5}
    fault = {"account_id": "evil", "sequence": 3, "fault": "head", "detail": "x", "about": None}
    first = {**sums, "faults": [fault] * is_wrong, "more_faults": False, "next": "7/evil"}
    problem = {"type": "urn:x", "title": "Broken", "status": 400, "detail": "cannot go on"}
    async with peer([answer(200, first), answer(400, problem)] * 2) as other:
        there = {"TOLLKEEPER_URL": other.url, "TOLLKEEPER_API_KEY": "k"}
        shown, as_json = [
            await asyncio.to_thread(tollkeeper, "credits", "verify", *options, environment=there)
            for options in ((), ("--json",))
        ]

    assert shown.code == as_json.code == (4 if is_wrong else 1)
    assert "7/evil" in shown.out
    assert "The ledger holds" not in shown.out
    assert "cannot go on" in shown.err
    assert ([fault] * is_wrong, "7/evil") == (as_json.json()["faults"], as_json.json()["next"])
    assert "cannot go on" == as_json.problem()["detail"]


def test_a_service_that_is_not_there_is_said_in_one_sentence(tmp_path: object) -> None:
    away = {"TOLLKEEPER_URL": "http://127.0.0.1:1", "TOLLKEEPER_API_KEY": "k"}
    unreachable = tollkeeper("credits", "balance", "a", environment=away)
    nothing_runs = tollkeeper(
        "credits", "balance", "a", environment={"TOLLKEEPER_DATA": f"{tmp_path}"}
    )
    half = tollkeeper("credits", "balance", "a", environment={"TOLLKEEPER_URL": "http://x"})

    for finished in (unreachable, nothing_runs, half):
        assert finished.code == 1
        assert finished.err.count("\n") == 1
    assert "tollkeeper up" in unreachable.err
    assert "tollkeeper up" in nothing_runs.err
    assert "TOLLKEEPER_API_KEY" in half.err


@pytest.mark.parametrize("arguments", [["--help"], ["credits", "--help"], ["replay", "--help"]])
def test_help_loads_neither_server_nor_driver(arguments: list[str]) -> None:
    shown = tollkeeper(*arguments, environment={"PYTHONPROFILEIMPORTTIME": "1"})

    assert shown.code == 0
    assert "Usage" in shown.out
    for heavy in ("asyncpg", "litestar", "uvicorn", "numpy", "msgspec"):
        assert f"| {heavy}\n" not in shown.err.replace("   ", "")


def test_the_version_is_shown() -> None:
    assert tollkeeper("--version").out.startswith("tollkeeper 0.")


async def test_nothing_in_the_ledger_steers_the_terminal(service: Service) -> None:
    """A description that clears the screen, and an account that was renamed in the database."""
    service.run("credits", "open", "steering", "--tenant", "acme-inc")
    evil = "x\x1b[2J\x1b[8mhidden\u202e"
    done = service.run("credits", "topup", "steering", "10", "--description", evil, "--json")
    shown = service.run("credits", "history", "steering")
    as_json = service.run("credits", "history", "steering", "--json")
    await _edit(
        service.credits_dsn,
        "UPDATE credit_transactions SET account_id = E'\\x1b[2Jann' WHERE account_id = 'steering'",
    )
    found = service.run("credits", "verify")

    assert evil == done.json()["transaction"]["description"]  # type: ignore[index]  # an object
    assert (0, 0, 0, 4) == (done.code, shown.code, as_json.code, found.code)
    assert r"x\u001b[2J\u001b[8mhidden\u202e" in shown.out
    assert evil == as_json.json()["items"][0]["description"]  # type: ignore[index]  # a list
    assert r"\u001b[2Jann" in found.out
    for each in (done, shown, as_json, found):
        assert (each.out + each.err).replace("\n", "").isprintable()


async def _edit(dsn: str, statement: str) -> None:
    import asyncpg

    connection = await asyncpg.connect(dsn)
    try:
        # As an attacker who owns the server would: triggers off.
        await connection.execute("SET session_replication_role = replica")
        await connection.execute(statement)
    finally:
        await connection.close()


def test_a_payment_is_kept_masked_however_it_is_given(service: Service, tmp_path: Path) -> None:
    payment = json.dumps({"number": "4111 1111 1111 1111", "cvv": "737", "holder": "Josephine"})
    (tmp_path / "payment.json").write_text(payment)
    service.run("credits", "open", "paid", "--tenant", "acme-inc")
    for source in (payment, str(tmp_path / "payment.json"), "-"):
        done = subprocess.run(
            [sys.executable, "-m", "tollkeeper", "credits", "topup", "paid", "10",
             "--payment", source],
            env=clean_environment(service.environment), input=payment, capture_output=True,
            text=True, timeout=60, check=False,
        )  # fmt: skip
        assert 0 == done.returncode, done.stderr
    history = service.run("credits", "history", "paid", "--json").json()["items"]

    masked = {"number": "****-****-****-1111", "holder": "Jo****"}
    assert isinstance(history, list)
    assert [masked] * 3 == [item["payment"] for item in history]


@pytest.mark.parametrize("source", ["{4111111111111111", "4111111111111111.json"])
def test_a_payment_that_is_none_is_refused_without_its_words(service: Service, source: str) -> None:
    refused = service.run("credits", "topup", "acme", "10", "--payment", source)

    assert (2, "") == (refused.code, refused.out)
    assert "--payment" in refused.err
    assert "4111" not in refused.err


def test_a_verification_that_fails_says_where_the_cause_is_written(service: Service) -> None:
    rename = "ALTER TABLE accounts RENAME COLUMN {} TO {}"
    execute(service.credits_dsn, rename.format("head_hash", "hidden"))
    failed = service.run("credits", "verify")
    execute(service.credits_dsn, rename.format("hidden", "head_hash"))

    assert (1, "", 1) == (failed.code, failed.out, failed.err.count("\n"))
    assert re.search(r"its log says why, at request_id [0-9a-f-]+$", failed.err), failed.err
