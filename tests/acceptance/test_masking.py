"""Card numbers in every field of every route: none is answered, logged, measured or stored.

The amount is left out: sixteen digits there are an amount, and the ledger keeps amounts exact.
"""

import asyncio
import http.client
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, quote_plus, urlsplit

import asyncpg
import pytest
from tests.acceptance.conftest import Service, running_service
from tests.cards import PUBLIC_NUMBERS, grouped, trace_of
from tests.conftest import Databases

FORMS = {
    digits: (digits, grouped(digits, " "), grouped(digits, "-"), " ".join(digits))
    for digits in PUBLIC_NUMBERS
}


class Caller:
    """Sends requests and keeps everything that comes back."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.heard: list[str] = []

    def send(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, str]:
        """Send one request; what of it HTTP cannot carry as it is has been quoted by the caller."""
        address = urlsplit(self._service.url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
        authorized = {"Authorization": f"Bearer {self._service.api_key}", **(headers or {})}
        raw = None if body is None else body if isinstance(body, str) else json.dumps(body)
        try:
            connection.request(method, path, raw and raw.encode(), authorized)
            answer = connection.getresponse()
            text = answer.read().decode()
            self.heard.append(f"{answer.status} {answer.headers}\n{text}")
        finally:
            connection.close()
        return answer.status, text

    def write(self, path: str, key: str, body: object) -> str:
        """Send a money write that must succeed."""
        status, text = self.send("POST", path, body, {"Idempotency-Key": key})
        assert status == 201, text
        return text


@pytest.fixture(scope="module")
def crossed(
    databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, str, Path]]:
    """A service of this module's own, the DSN of its keys, and its log."""
    folder = tmp_path_factory.mktemp("service")
    with (
        databases.fresh("credits") as credits_dsn,
        databases.fresh("access") as access_dsn,
        running_service(credits_dsn, access_dsn, folder) as service,
    ):
        yield service, access_dsn, folder / "service.log"


def test_no_card_number_is_left_anywhere(crossed: tuple[Service, str, Path]) -> None:
    service, access_dsn, log = crossed
    caller = Caller(service)
    assert caller.send("POST", "/v1/accounts", {"account_id": "ann", "tenant_id": "acme"})[0] == 201
    for digits, forms in FORMS.items():
        for number, form in enumerate(forms):
            send_what_is_taken(caller, f"{digits[-4:]}-{number}", form, digits)
            send_what_is_refused(caller, form)
    caller.send("GET", "/v1/accounts/ann/transactions?limit=1000")
    kept = caller.heard[-1]
    for path in ("/metrics", "/health", "/health/ready", "/schema", "/schema/openapi.json"):
        caller.send("GET", path)
    listed = service.run("credits", "history", "ann", "--json", "--all")
    stored = dump(service.credits_dsn), dump(access_dsn)

    places = {
        "answers": "\n".join(caller.heard),
        "log": log.read_text(),
        "command line": listed.out + listed.err,
        "ledger": stored[0],
        "keys": stored[1],
    }
    for digits in PUBLIC_NUMBERS:
        found = {place: trace_of(digits).search(text) for place, text in places.items()}
        assert {} == {place: match[0] for place, match in found.items() if match}
        for place in (kept, stored[0], listed.out):
            assert place.count(f"****-****-****-{digits[-4:]}") >= 12 * len(FORMS[digits])
    for secret in ("cvv-is-737", "4711", "Josephine"):
        alone = re.compile(rf"(?<![0-9a-f]){secret}(?![0-9a-f])")  # hashes and ids have any digits
        assert {} == {place: secret for place, text in places.items() if alone.search(text)}
    for place in (kept, stored[0], listed.out):
        assert "Jo****" in place


def send_what_is_taken(caller: Caller, key: str, form: str, digits: str) -> None:
    """Put a number wherever a request may hold one and still is done."""
    payment = {
        "number": form,
        "CardNumber": int(digits),
        "cards": [{"PAN": [form, int(digits)], "cvv": "737", "pin": 4711}],
        "cvv": "cvv-is-737",
        "holder": "Josephine Doe",
        "track_2": f";{digits}=2512101?",
        f"a {form}": f"b {form} c",
    }
    metadata = {
        "text": f"({form})",
        form: [form, {form: [int(digits), float(digits), {"deep": form}]}],
        "payment": payment,
        "url": f"https://shop.example/?card={quote(form)}&again={quote_plus(form)}",
    }
    said = {"amount": 10, "description": f"card{form}, cvv 737", "metadata": metadata}
    first = caller.write("/v1/accounts/ann/topups", f"t-{key}", {**said, "payment": payment})
    again = caller.write("/v1/accounts/ann/topups", f"t-{key}", {**said, "payment": payment})
    assert first == again
    caller.write("/v1/accounts/ann/topups/", f"u-{key}", {**said, "payment": payment})
    caller.write("/v1/accounts/ann/consumptions", f"c-{key}", {**said, "amount": 1})
    operations = [
        {"op": "topup", "account_id": "ann", "idempotency_key": f"b-{key}", **said,
         "payment": payment},
        {"op": "consume", "account_id": "ann", "idempotency_key": f"d-{key}", **said},
    ]  # fmt: skip
    status, text = caller.send("POST", "/v1/batch", {"operations": operations})
    assert (200, 2) == (status, text.count('"status":201')), text


def send_what_is_refused(caller: Caller, form: str) -> None:
    """Put a number where no request may have one: none is done, and none says the number."""
    compact, quoted = form.replace(" ", "-"), quote(form)
    bodies: list[tuple[str, object]] = [
        ("/v1/accounts", {"account_id": compact, "tenant_id": "acme"}),
        ("/v1/accounts", {"account_id": "bob", "tenant_id": compact}),
        ("/v1/accounts", {"account_id": form, "tenant_id": form, form: form}),
        ("/v1/accounts/ann/topups", {"amount": form}),
        ("/v1/accounts/ann/topups", {"amount": 1, form: 1}),
        ("/v1/accounts/ann/topups", {"amount": 1, "x" * 190 + form: 1}),
        ("/v1/accounts/ann/topups", {"amount": 1, "payment": form}),
        ("/v1/accounts/ann/topups", {"amount": 1, "payment": {"a": form * 400}}),
        ("/v1/accounts/ann/topups", {"amount": 1, "metadata": [form]}),
        ("/v1/accounts/ann/topups", {"amount": 1, "description": form + "\0"}),
        ("/v1/accounts/ann/topups", {"amount": 1, "description": {form: form}}),
        ("/v1/accounts/ann/consumptions", {"amount": 1, "payment": {"number": form}}),
        (f"/v1/accounts/{quoted}/topups", {"amount": 1}),
        (f"/v1/accounts/{compact}/consumptions", {"amount": 1}),
        (f"/v1/accounts/ann/topups?{quoted}={quoted}", {"amount": 1}),
        (f"/v1/accounts/ann/{quoted}", {"amount": 1}),
        (f"/v1/holds/{quoted}/capture", {"amount": 1}),
        (f"/v1/transactions/{quoted}/refunds", {"amount": 1}),
        ("/v1/batch", {"operations": [{"op": form, "account_id": "ann"}]}),
        ("/v1/batch", {"operations": form, form: form}),
        ("/v1/batch", {"operations": [operation(account_id=compact)]}),
        ("/v1/batch", {"operations": [operation(idempotency_key=compact)]}),
        ("/v1/batch", {"operations": [operation(**{form: form})]}),
        ("/v1/batch", {"operations": [operation(metadata={form: "\0"})]}),
        ("/v1/audit/verify", {"account_id": compact}),
        ("/v1/audit/verify", {"after": compact}),
        ("/v1/audit/verify", {"account_id": form, form: form}),
        ("/v1/accounts/ann/topups", f"{form}"),
        ("/v1/accounts/ann/topups", f'{{"amount": 1, "{form}'),
    ]  # fmt: skip
    for path, body in bodies:
        status, text = caller.send("POST", path, body, {"Idempotency-Key": "refused"})
        assert 400 <= status < 500, (path, body, status, text)
    for key, header in (("key", compact), ("spaced", form)):
        status, text = caller.send(
            "POST",
            "/v1/accounts/ann/topups",
            {"amount": 1},
            {
                "Idempotency-Key": header,
                "X-Request-Id": form,
                "Traceparent": form,
                f"X-{key}": form,
            },
        )
        assert (400, True) == (status, "Idempotency-Key" in text), text
    for headers in (
        {"Authorization": f"Bearer {form}"},
        {"Authorization": form},
        {"Content-Type": form, "User-Agent": form, "Cookie": f"a={form}", "Host": compact},
    ):
        caller.send("GET", "/v1/accounts/ann", headers=headers)
    for path in (
        f"/v1/accounts/{compact}", f"/v1/accounts/{quoted}", f"/v1/accounts/{quoted}/transactions",
        f"/v1/accounts/ann/transactions?{quoted}", f"/v1/accounts/ann/transactions?a={quoted}",
        f"/v1/accounts/ann/transactions?after={quoted}-", f"/{quoted}",
        f"/v1/accounts/ann?{quoted}=1",
        f"/v1/accounts/ann/transactions?limit={quoted}", f"/v1/accounts/ann?a={quote_plus(form)}",
    ):  # fmt: skip
        assert 400 <= caller.send("GET", path)[0] < 500, path
        caller.send("DELETE", path)


def operation(**more: object) -> dict[str, object]:
    return {"op": "topup", "account_id": "ann", "idempotency_key": "refused", "amount": 1, **more}


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/accounts", {"account_id": "4111-1111-1111-1111", "tenant_id": "a"}, "account_id"),
        ("/v1/accounts", {"account_id": "a", "tenant_id": "4111111111111111"}, "tenant_id"),
        ("/v1/accounts/4111111111111111/topups", {"amount": 1}, "account_id"),
        (
            "/v1/batch",
            {"operations": [operation(), operation(idempotency_key="a4111111111111111")]},
            "operations[1].idempotency_key",
        ),
        ("/v1/accounts/ann/consumptions", {"amount": 1, "payment": {}}, "payment"),
    ],
)
def test_what_is_refused_is_named_and_not_repeated(
    crossed: tuple[Service, str, Path], path: str, body: object, field: str
) -> None:
    status, text = Caller(crossed[0]).send("POST", path, body, {"Idempotency-Key": "one"})

    assert 400 == status
    assert [field] == [error["field"] for error in json.loads(text)["errors"]]
    assert "1111" not in text


def dump(dsn: str) -> str:
    """Return every row of every table of a database, as text."""

    async def read() -> str:
        connection = await asyncpg.connect(dsn)
        try:
            tables = await connection.fetch(
                "SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables "
                "WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
            )
            rows = [
                row["row"]
                for table in tables
                for row in await connection.fetch(f"SELECT t::text AS row FROM {table['name']} t")
            ]
        finally:
            await connection.close()
        return "\n".join(rows)

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(lambda: asyncio.run(read())).result()
