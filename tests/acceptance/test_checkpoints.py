"""Checkpoints as an operator and an auditor meet them: worker, command line, API, and a script."""

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import httpx
import pytest
from tests.acceptance.conftest import (
    READY_S,
    Finished,
    Service,
    clean_environment,
    execute,
    free_port,
    running_service,
    tollkeeper,
)
from tests.checkpoints import running_maker
from tests.conftest import Databases

from tollkeeper.credits.keyfile import read_signing_key

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Audited:
    """A service, a key, and the worker's settings."""

    service: Service
    key: Path
    file: Path
    environment: dict[str, str]

    def make(self) -> None:
        """Make and publish a checkpoint as the worker does."""

        async def work() -> None:
            key = read_signing_key(self.key)
            async with running_maker(self.service.credits_dsn, key=key, file=self.file) as maker:
                await maker.round()

        asyncio.run(work())

    def verify(self, *options: str, file: Path | None = None) -> Finished:
        """Run `verify --checkpoints`."""
        public = str(self.key.with_suffix(".pub"))
        return self.service.run(
            "credits", "verify", "--checkpoints", str(file or self.file), "--public-key", public,
            *options,
        )  # fmt: skip

    def topup(self, account: str, amount: int) -> str:
        """Top up and return the transaction's id."""
        answer = self.post(f"/v1/accounts/{account}/topups", {"amount": amount})
        return str(answer["transaction_id"])

    def post(self, path: str, body: dict[str, object]) -> dict[str, object]:
        """Send a write that is done."""
        headers = {
            "Authorization": f"Bearer {self.service.api_key}",
            "Idempotency-Key": f"{path}-{body.get('amount')}",
        }
        answer = httpx.post(f"{self.service.url}{path}", json=body, headers=headers)

        assert 201 == answer.status_code, answer.text
        document: dict[str, object] = answer.json()
        return document


@pytest.fixture
def audited(databases: Databases, tmp_path: Path) -> Iterator[Audited]:
    key = tmp_path / "checkpoint.key"
    made = tollkeeper("checkpoints", "key", str(key), "--name", "example.com/credits", "--json")

    assert 0 == made.code
    with (
        databases.fresh("credits") as credits_dsn,
        databases.fresh("access") as access_dsn,
        running_service(credits_dsn, access_dsn, tmp_path) as service,
    ):
        file = tmp_path / "credits.notes"
        environment = {
            "TOLLKEEPER_CREDITS_DSN": credits_dsn,
            "TOLLKEEPER_CHECKPOINT_KEY": str(key),
            "TOLLKEEPER_CHECKPOINT_FILE": str(file),
            "TOLLKEEPER_CHECKPOINT_PERIOD_S": "0.2",
        }
        ready = Audited(service, key, file, environment)
        for account, tenant in (("ann", "acme"), ("bob", "umbra")):
            ready.post("/v1/accounts", {"account_id": account, "tenant_id": tenant})
        yield ready


def test_an_audit_of_a_ledger_that_is_what_was_signed(audited: Audited) -> None:
    for amount in (1, 2):
        audited.topup("ann", amount)
        audited.make()
    audited.topup("ann", 3)
    once = tollkeeper("worker", "--once", environment=audited.environment)
    shown, as_json = audited.verify(), audited.verify("--json")
    listed = audited.service.run("checkpoints", "list", "--json").json()
    table = audited.service.run("checkpoints", "list", "--limit", "2")
    items = listed["items"]

    assert (0, 0, 0) == (once.code, shown.code, as_json.code)
    assert "The ledger holds" in shown.out
    assert "The ledger is what was signed" in shown.out
    assert {"checkpoints": 3, "leaves": 4, "repeated": 0, "last": 3} == as_json.json()["audit"]
    assert (3, []) == (as_json.json()["transactions"], as_json.json()["faults"])
    assert isinstance(items, list)
    assert [1, 2, 3] == [item["number"] for item in items]
    assert "".join(f"{item['note']}\n" for item in items) == audited.file.read_text()
    assert "--after 2" in table.out


def test_a_chain_that_was_cut_passes_verify_and_not_the_audit(audited: Audited) -> None:
    audited.topup("ann", 5)
    audited.make()
    execute(
        audited.service.credits_dsn,
        "SET session_replication_role = replica;"
        "DELETE FROM credit_transactions;"
        "UPDATE accounts SET balance = 0, version = 0, head_hash = sha256('\\x01'::bytea"
        " || int4send(3) || int4send(4) || 'annacme'::bytea) WHERE account_id = 'ann'",
    )
    plain = audited.service.run("credits", "verify", "--json")
    found, as_json = audited.verify(), audited.verify("--json")
    faults = as_json.json()["faults"]

    assert (0, []) == (plain.code, plain.json()["faults"])
    assert (4, 4) == (found.code, as_json.code)
    assert "NOT what was signed" in found.out
    assert re.search(r"ann\s+1\s+truncated", found.out)
    assert isinstance(faults, list)
    assert [("ann", 1, "truncated")] == [
        (each["account_id"], each["sequence"], each["fault"]) for each in faults
    ]


def test_a_file_that_is_not_whole_is_found_unless_it_may_end_early(
    audited: Audited, tmp_path: Path
) -> None:
    for amount in (1, 2):
        audited.topup("ann", amount)
        audited.make()
    text = audited.file.read_text()
    cut, torn = tmp_path / "cut", tmp_path / "torn"
    cut.write_text(text[: text.index("\n\nexample.com") + 2])
    torn.write_text(text[:-20])

    found = audited.verify("--json", file=cut)

    assert 4 == found.code
    assert "the ledger has 1 more" in found.out
    assert 0 == audited.verify("--partial", file=cut).code
    assert 4 == audited.verify("--partial", file=torn).code


def test_an_audit_waits_for_a_checkpoint_that_is_being_published(
    audited: Audited, tmp_path: Path
) -> None:
    """The table has it, the file gets its second half while the audit runs."""
    for amount in (1, 2):
        audited.topup("ann", amount)
        audited.make()
    content = audited.file.read_bytes()
    growing = tmp_path / "growing"
    growing.write_bytes(content[:-100])
    command = [
        sys.executable, "-m", "tollkeeper", "credits", "verify", "--checkpoints", str(growing),
        "--public-key", str(audited.key.with_suffix(".pub")), "--json",
    ]  # fmt: skip
    with subprocess.Popen(
        command, env=clean_environment(audited.service.environment), stdout=subprocess.PIPE
    ) as process:
        time.sleep(1)
        growing.write_bytes(content)
        out, _ = process.communicate(timeout=60)

    assert 0 == process.returncode
    assert 2 == json.loads(out)["audit"]["checkpoints"]


def test_what_belongs_together_is_asked_for(audited: Audited) -> None:
    run, file = audited.service.run, str(audited.file)
    audited.topup("ann", 1)
    audited.make()
    public = str(audited.key.with_suffix(".pub"))

    assert 2 == run("credits", "verify", "--checkpoints", file).code
    assert 2 == run("credits", "verify", "--public-key", public).code
    assert 2 == run("credits", "verify", "--partial").code
    both = run("credits", "verify", "ann", "--checkpoints", file, "--public-key", public)
    assert 2 == both.code
    missing = run("credits", "verify", "--checkpoints", "nowhere", "--public-key", public)
    assert (1, 1) == (missing.code, missing.err.count("\n"))
    assert 1 == run("credits", "verify", "--checkpoints", file, "--public-key", "no key").code
    again = tollkeeper("checkpoints", "key", str(audited.key))
    assert 1 == again.code
    assert "is there already" in again.err


def script_of_the_guide(folder: Path) -> Path:
    guide = (ROOT / "docs" / "guide" / "audit.md").read_text(encoding="utf-8")
    (found,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    path = folder / "check.py"
    path.write_text(found)
    return path


def check(
    script: Path, proof: object, public: Path, *options: str
) -> subprocess.CompletedProcess[str]:
    path = script.with_name("proof.json")
    path.write_text(json.dumps(proof))
    return subprocess.run(
        [sys.executable, "-I", *options, str(script), str(path), str(public)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_a_proof_is_checked_by_the_script_of_the_guide(audited: Audited, tmp_path: Path) -> None:
    public, script = audited.key.with_suffix(".pub"), script_of_the_guide(tmp_path)
    for number in range(5):
        audited.post("/v1/accounts", {"account_id": f"other-{number}", "tenant_id": "acme"})
    first = audited.topup("ann", 11)
    second = audited.topup("ann", 22)
    audited.topup("ann", 33)
    early = audited.service.run("credits", "prove", first)
    audited.make()
    results = [audited.service.run("credits", "prove", each, "--json") for each in (first, second)]
    checked = [check(script, result.json(), public) for result in results]
    shown = audited.service.run("credits", "prove", first)
    links = [len(result.json()["links"]) for result in results]  # type: ignore[arg-type]  # a list

    assert 3 == early.code
    assert "no checkpoint covers" in early.err
    assert [2, 1] == links
    assert "11, balance 11, account 'ann'" in checked[0].stdout, checked[0].stderr
    assert "22, balance 33, account 'ann'" in checked[1].stdout, checked[1].stderr
    assert [0, 0] == [each.returncode for each in checked]
    assert "is under a signed checkpoint" in shown.out
    proof = results[0].json()
    assert 3 == len(proof["path"])  # type: ignore[arg-type]  # a list
    for changed in mutations(proof):
        found = check(script, changed, public, "-O")  # nothing may rest on an `assert`
        assert (1, "") == (found.returncode, found.stdout), changed


def test_a_proof_has_every_link_however_many_there_are(audited: Audited, tmp_path: Path) -> None:
    first = audited.topup("ann", 1)
    operations = [
        {"op": "topup", "account_id": "ann", "idempotency_key": f"more-{number}", "amount": 1}
        for number in range(2_100)
    ]
    answer = httpx.post(
        f"{audited.service.url}/v1/batch",
        json={"operations": operations},
        headers={"Authorization": f"Bearer {audited.service.api_key}"},
        timeout=60,
    )
    audited.make()
    proof = audited.service.run("credits", "prove", first, "--json").json()
    checked = check(script_of_the_guide(tmp_path), proof, audited.key.with_suffix(".pub"))

    assert 200 == answer.status_code
    assert list(range(2, 2_102)) == [link["sequence"] for link in proof["links"]]  # type: ignore[attr-defined]  # a list
    assert 0 == checked.returncode, checked.stderr


def mutations(proof: dict[str, object]) -> Iterator[dict[str, object]]:
    """Yield proofs with one thing changed."""
    text = json.dumps(proof)
    for before, after in (
        ('"balance", "value": "0', '"balance", "value": "1'),
        ('"amount", "value": "0', '"amount", "value": "1'),
        ('"account_id": "ann", "sequence": 3', '"account_id": "bob", "sequence": 3'),
        ('"balance": 66', '"balance": 67'),
        ('"sequence": 3, "head_hash"', '"sequence": 4, "head_hash"'),
        ('"side": "left"', '"side": "right"'),
        ("number 1", "number 2"),
        ("example.com/credits\\n7", "example.com/credits\\n8"),
    ):
        assert before in text or before == '"side": "left"', before
        if before in text:
            yield json.loads(text.replace(before, after))
    fields = proof["transaction"]
    assert isinstance(fields, list)
    swapped = {"amount": "balance", "balance": "amount"}
    yield {**proof, "transaction": [
        {**each, "name": swapped.get(each["name"], each["name"])} for each in fields
    ]}  # fmt: skip
    # What is hashed stays the same: the first field is passed off as a part of the hash before it.
    first = bytes.fromhex(fields[0]["value"])
    moved = f"{proof['previous_hash']}{len(first).to_bytes(4, 'big').hex()}{first.hex()}"
    yield {**proof, "previous_hash": moved, "transaction": fields[1:]}
    yield {**proof, "transaction": fields[:-1]}
    yield {**proof, "transaction": [*fields, {"name": "reference_id", "value": None}]}
    yield {**proof, "links": []}
    yield {**proof, "path": []}


def test_a_proof_of_what_is_not_there_is_refused(audited: Audited) -> None:
    unknown = audited.service.run("credits", "prove", "01978a3c-5f00-7abc-8def-0123456789ab")
    no_id = audited.service.run("credits", "prove", "nothing")

    assert (3, 1) == (unknown.code, no_id.code)
    assert "there is no transaction" in unknown.err


def test_the_pages_of_the_audit_lead_on(audited: Audited) -> None:
    for amount in (1, 2, 3):
        audited.topup("ann", amount)
    audited.make()
    with httpx.Client(
        base_url=audited.service.url,
        headers={"Authorization": f"Bearer {audited.service.api_key}"},
    ) as client:
        leaves = client.get("/v1/audit/checkpoints/1/leaves?limit=1").json()
        rest = client.get(f"/v1/audit/checkpoints/1/leaves?after={leaves['next']}").json()
        links = client.get("/v1/accounts/ann/links?limit=2").json()
        last = client.get(f"/v1/accounts/ann/links?after={links['next']}").json()
        missing = client.get("/v1/audit/checkpoints/2/leaves")
        strange = client.get("/v1/audit/checkpoints/first/leaves")

    assert {"ann", "bob"} == {
        item["leaf"]["account_id"] for item in (*leaves["items"], *rest["items"])
    }
    assert rest["next"] is None
    assert [1, 2, 3] == [item["sequence"] for item in (*links["items"], *last["items"])]
    assert last["next"] is None
    assert (404, 400) == (missing.status_code, strange.status_code)
    assert "urn:tollkeeper:problem:checkpoint-not-found" == missing.json()["type"]


def test_a_worker_signs_again_and_again_and_can_be_scraped(audited: Audited) -> None:
    port = free_port()
    environment = {**audited.environment, "TOLLKEEPER_WORKER_PORT": str(port)}
    with running_worker(environment):
        for amount in (1, 2):
            audited.topup("ann", amount)
            wait_for_notes(audited.file, amount)
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            metrics = answer.read().decode()
    found = audited.verify()

    assert 0 == found.code
    assert 'credits_checkpoints_total{result="failed"} 0.0' in metrics
    assert 'credits_checkpoint_publications_total{result="ok",target="file"}' in metrics


def test_a_worker_without_its_key_or_its_port_says_so(audited: Audited) -> None:
    no_key = {**audited.environment, "TOLLKEEPER_CHECKPOINT_KEY": "nowhere.key"}
    refused = tollkeeper("worker", environment=no_key)
    taken = {
        **audited.environment,
        "TOLLKEEPER_WORKER_PORT": audited.service.url.rpartition(":")[2],
    }
    in_use = tollkeeper("worker", environment=taken)
    no_round = {
        **audited.environment, "TOLLKEEPER_CHECKPOINT_FILE": str(audited.file / "not" / "there")
    }  # fmt: skip
    failed = tollkeeper("worker", "--once", environment=no_round)

    assert [1, 1, 1] == [each.code for each in (refused, in_use, failed)]
    assert "nowhere.key cannot be read" in refused.err
    assert "Cannot listen" in in_use.err
    assert "checkpoints are not published" in failed.err


@contextmanager
def running_worker(environment: dict[str, str]) -> Iterator[None]:
    with subprocess.Popen(
        [sys.executable, "-m", "tollkeeper", "worker"],
        env=clean_environment(environment), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            yield
        finally:
            process.terminate()

            assert 0 == process.wait(timeout=30)


def wait_for_notes(file: Path, count: int) -> None:
    deadline_s = time.monotonic() + READY_S
    while not file.exists() or file.read_text().count("number ") < count:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
