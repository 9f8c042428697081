"""The HTTP API against a real `tollkeeper serve credits`: what it promises, and what it refuses."""

import itertools
from collections.abc import Iterator
from uuid import UUID

import httpx
import pytest
from tests.acceptance.conftest import Service, execute

from tollkeeper.kernel.ids import compose_id

URN = "urn:tollkeeper:problem:"
MAX_AMOUNT = 2**63 - 1
BODY_LIMIT = 8 * 1024 * 1024
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def api(service: Service) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {service.api_key}"}
    with httpx.Client(base_url=service.url, headers=headers, timeout=30) as client:
        yield client


@pytest.fixture
def ann(api: httpx.Client) -> str:
    """An account of this test's own, with 100."""
    name = f"ann-{next(_numbers)}"
    opened = api.post("/v1/accounts", json={"account_id": name, "tenant_id": "acme"})
    assert 201 == opened.status_code
    assert 201 == move(api, name, "topups", 100, key="first").status_code
    return name


def move(
    api: httpx.Client, name: str, what: str, amount: object, *, key: str, **more: object
) -> httpx.Response:
    return api.post(
        f"/v1/accounts/{name}/{what}",
        json={"amount": amount, **more},
        headers={"Idempotency-Key": key},
    )


def balance(api: httpx.Client, name: str) -> int:
    found: int = api.get(f"/v1/accounts/{name}").json()["balance"]
    return found


def problem_in(answer: httpx.Response, status: int, kind: str) -> dict[str, object]:
    """Return the problem document of an answer, which must be of this status and kind."""
    document: dict[str, object] = answer.json()

    assert (status, URN + kind) == (answer.status_code, document["type"]), answer.text
    assert "application/problem+json" == answer.headers["Content-Type"]
    assert status == document["status"]
    assert document["title"]
    return document


def fields_in(answer: httpx.Response) -> list[str]:
    """Return the fields that a 400 names."""
    errors = problem_in(answer, 400, "invalid-request")["errors"]
    assert isinstance(errors, list)
    assert all(error["detail"] for error in errors)
    return [error["field"] for error in errors]


def test_an_account_is_opened_once(api: httpx.Client) -> None:
    body = {"account_id": "opened", "tenant_id": "acme"}
    first = api.post("/v1/accounts", json=body)
    again = api.post("/v1/accounts", json=body)
    taken = api.post("/v1/accounts", json={**body, "tenant_id": "umbra"})

    assert (201, 200) == (first.status_code, again.status_code)
    assert first.json() == again.json() == api.get("/v1/accounts/opened").json()
    assert {
        "account_id": "opened", "tenant_id": "acme", "balance": 0, "reserved": 0, "available": 0,
        "version": 0,
    }.items() <= first.json().items()  # fmt: skip
    assert {"head_hash", "created_at"} < first.json().keys()
    assert first.json()["created_at"].endswith("Z")
    problem_in(taken, 409, "account-taken")


def test_a_movement_answers_with_its_transaction(api: httpx.Client, ann: str) -> None:
    answer = move(api, ann, "consumptions", 30, key="k", description="tea", metadata={"n": 1})
    made = answer.json()

    assert 201 == answer.status_code
    assert "application/json" == answer.headers["Content-Type"]
    assert "Idempotent-Replayed" not in answer.headers
    assert {
        "account_id": ann, "kind": "consume", "amount": 30, "balance": 70, "reserved": 0,
        "available": 70, "sequence": 2,
    }.items() <= made.items()  # fmt: skip
    assert 7 == UUID(made["transaction_id"]).version
    assert 64 == len(made["hash"])
    assert made["hash"] == api.get(f"/v1/accounts/{ann}").json()["head_hash"]


def test_the_same_request_again_is_a_replay(api: httpx.Client, ann: str) -> None:
    first = move(api, ann, "consumptions", 30, key="same")
    again = move(api, ann, "consumptions", 30, key="same")
    other = move(api, ann, "consumptions", 31, key="same")

    assert (201, 201) == (first.status_code, again.status_code)
    assert first.json() == again.json()
    assert "true" == again.headers["Idempotent-Replayed"]
    problem_in(other, 422, "idempotency-key-reused")
    assert 70 == balance(api, ann)


def test_an_answer_says_what_was_written(api: httpx.Client, ann: str) -> None:
    """As it is kept: masked, the same the first time, again, and in the history."""
    said = {"description": "by 4111 1111 1111 1111", "metadata": {"b": 1, "a": [None, 0.5]}}
    kept = {"description": "by ****-****-****-1111", "metadata": {"a": [None, 0.5], "b": 1}}
    paid = {"payment": {"cvv": "737", "via": "card"}}
    answers = [move(api, ann, "topups", 1, key="t", **said, **paid).json() for _ in range(2)]
    answers += [move(api, ann, "holds", 1, key="h", **said).json() for _ in range(2)]
    plain = move(api, ann, "consumptions", 1, key="c").json()
    history = api.get(f"/v1/accounts/{ann}/transactions").json()["items"]

    assert [{**kept, "payment": {"via": "card"}}] * 2 + [{**kept, "payment": None}] * 2 == [
        {name: each[name] for name in ("description", "metadata", "payment")} for each in answers
    ]
    assert [None] * 3 == [plain[name] for name in ("description", "metadata", "payment")]
    for made, read in zip([*answers[1::2], plain], history[1:], strict=True):
        assert made.items() <= read.items()


@pytest.mark.parametrize("route", ["topups", "consumptions"])
def test_a_path_with_a_trailing_slash_is_the_same_path(
    api: httpx.Client, ann: str, route: str
) -> None:
    first = move(api, ann, route, 30, key="same")
    again = move(api, ann, f"{route}/", 30, key="same")
    none = move(api, "nobody-here", f"{route}/", 30, key="same")

    assert (201, 201) == (first.status_code, again.status_code)
    assert first.json() == again.json()
    assert "true" == again.headers["Idempotent-Replayed"]
    problem_in(none, 404, "account-not-found")


def test_what_is_not_there_cannot_be_spent(api: httpx.Client, ann: str) -> None:
    refused = move(api, ann, "consumptions", 101, key="k")
    found = problem_in(refused, 402, "insufficient-credits")

    assert (100, 101) == (found["available"], found["required"])
    assert "Idempotent-Replayed" not in refused.headers
    # The refusal kept no key: after a top-up the same request goes through.
    assert 201 == move(api, ann, "topups", 1, key="more").status_code
    assert 201 == move(api, ann, "consumptions", 101, key="k").status_code


def test_a_balance_of_63_bits_is_full(api: httpx.Client, ann: str) -> None:
    full = move(api, ann, "topups", MAX_AMOUNT - 100, key="full")
    over = move(api, ann, "topups", 1, key="over")

    assert MAX_AMOUNT == full.json()["balance"]
    problem_in(over, 422, "balance-too-large")


def test_an_account_that_was_never_opened_is_not_found(api: httpx.Client) -> None:
    for answer in (
        api.get("/v1/accounts/nobody"),
        api.get("/v1/accounts/nobody/transactions"),
        move(api, "nobody", "topups", 1, key="k"),
        move(api, "nobody", "consumptions", 1, key="k"),
        api.post("/v1/audit/verify", json={"account_id": "nobody"}),
    ):
        assert "nobody" in str(problem_in(answer, 404, "account-not-found")["detail"])


def test_keys_out_of_their_time_are_refused(api: httpx.Client, ann: str) -> None:
    for moment_ms in (1_600_000_000_000, 2**48 - 1):
        key = str(compose_id(moment_ms, 1, 1))
        problem_in(move(api, ann, "topups", 1, key=key), 422, "idempotency-key-expired")

    assert 100 == balance(api, ann)


def test_a_history_is_paged_through(api: httpx.Client, ann: str) -> None:
    for number in range(4):
        move(api, ann, "consumptions", 1, key=f"k{number}", metadata={"b": number, "a": "Ü"})
    seen: list[dict[str, object]] = []
    after: str | None = "0"
    while after is not None:
        page = api.get(f"/v1/accounts/{ann}/transactions", params={"after": after, "limit": 2})
        assert len(page.json()["items"]) in {1, 2}
        seen += page.json()["items"]
        after = page.json()["next"]

    assert [1, 2, 3, 4, 5] == [each["sequence"] for each in seen]
    assert [None, 0, 1, 2, 3] == [
        each["metadata"]["b"] if isinstance(each["metadata"], dict) else None for each in seen
    ]
    assert seen == api.get(f"/v1/accounts/{ann}/transactions").json()["items"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"), ("limit=1001", "limit"), ("limit=-1", "limit"), ("limit=x", "limit"),
        ("limit=", "limit"), ("limit=1.0", "limit"), ("limit=%D9%A1", "limit"),
        ("limit=" + "9" * 5_000, "limit"), ("after=-1", "after"), ("after=x", "after"),
        ("after=" + "9" * 19, "after"), ("after=%00", "after"), ("after=%FF", "after"),
        ("after=", "after"), ("limt=5", "limt"), ("limit=5&limit=6", "limit"),
    ],
)  # fmt: skip
def test_a_page_that_cannot_be_is_named(
    api: httpx.Client, ann: str, query: str, field: str
) -> None:
    assert [field] == fields_in(api.get(f"/v1/accounts/{ann}/transactions?{query}"))


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("POST /v1/accounts", {"account_id": "asked-too-much", "tenant_id": "acme"}),
        ("GET /v1/accounts/{ann}", None),
        ("POST /v1/accounts/{ann}/topups", {"amount": 1}),
        ("POST /v1/accounts/{ann}/topups/", {"amount": 1}),
        ("POST /v1/accounts/{ann}/consumptions", {"amount": 1}),
        ("POST /v1/batch", {"operations": []}),
        ("POST /v1/audit/verify", {}),
    ],
)
def test_a_query_parameter_that_a_route_does_not_know_is_named(
    api: httpx.Client, ann: str, route: str, body: dict[str, object] | None
) -> None:
    method, path = route.format(ann=ann).split()
    answer = api.request(
        method, f"{path}?dry_run=true", json=body, headers={"Idempotency-Key": "k"}
    )

    assert ["dry_run"] == fields_in(answer)
    assert 100 == balance(api, ann)


@pytest.mark.parametrize("path", ["/health", "/health/ready", "/metrics", "/schema"])
def test_probes_may_bust_caches(api: httpx.Client, path: str) -> None:
    assert 200 == api.get(f"{path}?t=1764000000").status_code


BAD_AMOUNTS = [
    b"0", b"-1", b"9223372036854775808", b"1" * 5_000, b"1.5", b"1e400", b"NaN", b"Infinity",
    b'"1"', b"null", b"true", b"[1]", b"{}",
]  # fmt: skip


@pytest.mark.parametrize("amount", BAD_AMOUNTS, ids=lambda amount: amount[:24].decode())
def test_an_amount_that_cannot_be_is_refused(api: httpx.Client, ann: str, amount: bytes) -> None:
    answer = api.post(
        f"/v1/accounts/{ann}/topups",
        content=b'{"amount": ' + amount + b"}",
        headers={"Idempotency-Key": "k"},
    )

    # What is no JSON at all (NaN, Infinity) has no fields.
    assert ["body" if amount in {b"NaN", b"Infinity"} else "amount"] == fields_in(answer)
    assert 100 == balance(api, ann)


BAD_BODIES = {
    "empty": (b"", "body"),
    "no JSON": (b"{", "body"),
    "an array": (b"[]", "body"),
    "a number": (b"1", "body"),
    "bad UTF-8": (b'{"amount": 1, "description": "\xff"}', "body"),
    "UTF-16": ('{"amount": 1}'.encode("utf-16"), "body"),
    "deep": (b"[" * 100_000, "body"),
    "no amount": (b"{}", "amount"),
    "unknown field": (b'{"amount": 1, "amuont": 2}', "amuont"),
    "unknown field with NUL": (b'{"amount": 1, "a\\u0000": 2}', "a\0"),
    "empty description": (b'{"amount": 1, "description": ""}', "description"),
    "long description": (b'{"amount": 1, "description": "%s"}' % (b"x" * 501), "description"),
    "NUL in description": (b'{"amount": 1, "description": "\\u0000"}', "description"),
    "description of no text": (b'{"amount": 1, "description": 1}', "description"),
    "metadata of no object": (b'{"amount": 1, "metadata": [1]}', "metadata"),
    "large metadata": (b'{"amount": 1, "metadata": {"a": "%s"}}' % (b"x" * 4_096), "metadata"),
    "deep metadata": (b'{"amount":1,"metadata":{"a":%s}}' % (b"[" * 9 + b"]" * 9), "metadata"),
    "NUL in metadata": (b'{"amount": 1, "metadata": {"\\u0000": 1}}', "metadata"),
    "surrogate in metadata": (b'{"amount": 1, "metadata": {"a": "\\ud800"}}', "body"),
}


@pytest.mark.parametrize("what", BAD_BODIES)
def test_a_body_that_cannot_be_is_refused(api: httpx.Client, ann: str, what: str) -> None:
    body, field = BAD_BODIES[what]
    answer = api.post(f"/v1/accounts/{ann}/topups", content=body, headers={"Idempotency-Key": "k"})

    assert [field] == fields_in(answer)
    assert 100 == balance(api, ann)


@pytest.mark.parametrize("field", ["account_id", "tenant_id"])
@pytest.mark.parametrize(
    "value", ["", "x" * 129, "a/b", "a b", "a\n", "a\0", "Grüße", ".", 1, None]
)
def test_an_id_that_cannot_be_is_refused(api: httpx.Client, field: str, value: object) -> None:
    body = {"account_id": "fine", "tenant_id": "fine", field: value}

    assert [field] == fields_in(api.post("/v1/accounts", json=body))


@pytest.mark.parametrize("name", ["-a", "a%00", "a%20b", "%FF", "x" * 129, "a%0A", "%C3%BC"])
def test_a_path_that_names_no_account_is_refused(api: httpx.Client, name: str) -> None:
    for answer in (
        api.get(f"/v1/accounts/{name}"),
        api.get(f"/v1/accounts/{name}/transactions"),
        move(api, name, "topups", 1, key="k"),
    ):
        assert ["account_id"] == fields_in(answer)


def test_a_money_write_needs_one_usable_key(api: httpx.Client, ann: str) -> None:
    url = f"/v1/accounts/{ann}/topups"
    missing = api.post(url, json={"amount": 1})
    several = api.post(
        url, json={"amount": 1}, headers=[("Idempotency-Key", "a"), ("Idempotency-Key", "a")]
    )

    problem_in(missing, 400, "idempotency-key-missing")
    problem_in(several, 400, "idempotency-key-invalid")
    for key in ("x" * 256, "a b", ""):
        problem_in(move(api, ann, "topups", 1, key=key), 400, "idempotency-key-invalid")
    assert 201 == move(api, ann, "topups", 1, key="x" * 255).status_code
    assert 101 == balance(api, ann)


@pytest.mark.parametrize("is_announced", [True, False])
def test_a_body_that_is_too_large_is_413_and_the_connection_goes_on(
    api: httpx.Client, ann: str, is_announced: bool
) -> None:
    body = b" " * (BODY_LIMIT + 1)
    answer = api.post("/v1/batch", content=body if is_announced else iter([body]))

    assert BODY_LIMIT == problem_in(answer, 413, "body-too-large")["limit_bytes"]
    assert 100 == balance(api, ann)


def item(op: str, account_id: str, **fields: object) -> dict[str, object]:
    key = {} if op == "open" else {"idempotency_key": f"key-{next(_numbers)}"}
    return {"op": op, "account_id": account_id, **key, **fields}


def test_a_batch_is_decided_in_order_each_operation_alone(api: httpx.Client, ann: str) -> None:
    new = f"new-{ann}"
    spend = item("consume", ann, amount=60)
    answer = api.post(
        "/v1/batch",
        json={
            "operations": [
                item("open", new, tenant_id="acme"),
                item("topup", new, amount=5, description="first", metadata={"a": 1}),
                spend,
                item("consume", ann, amount=60),
                spend,
                {**spend, "amount": 61},
                item("consume", "nobody", amount=1),
                item("open", new, tenant_id="umbra"),
                item("open", new, tenant_id="acme"),
            ]
        },
    )
    results = answer.json()["results"]

    assert 200 == answer.status_code
    assert [201, 201, 201, 402, 201, 422, 404, 409, 200] == [each["status"] for each in results]
    assert [False] * 4 + [True] + [False] * 4 == [each.get("replayed", False) for each in results]
    assert results[2]["transaction"] == results[4]["transaction"]
    assert (40, 60) == (results[3]["problem"]["available"], results[3]["problem"]["required"])
    assert "first" == api.get(f"/v1/accounts/{new}/transactions").json()["items"][0]["description"]
    assert (5, 40) == (balance(api, new), balance(api, ann))


def test_an_account_that_cannot_be_read_fails_alone_in_a_batch(
    service: Service, api: httpx.Client, ann: str
) -> None:
    opened = api.post("/v1/accounts", json={"account_id": "unread", "tenant_id": "acme"})
    execute(
        service.credits_dsn,
        "UPDATE accounts SET created_at = '0044-03-15 BC' WHERE account_id = 'unread'",
    )
    operations = [item("consume", ann, amount=1), item("topup", "unread", amount=1)]
    answer = api.post("/v1/batch", json={"operations": [*operations, *operations[:1]]})
    alone = move(api, "unread", "topups", 1, key="k")
    execute(
        service.credits_dsn,
        "UPDATE accounts SET created_at = now() WHERE account_id = 'unread'",
    )
    results = answer.json()["results"]

    assert (201, 200) == (opened.status_code, answer.status_code)
    assert [201, 500, 201] == [each["status"] for each in results]
    assert {"type": f"{URN}internal-error", "title": "Internal error", "status": 500} == (
        results[1]["problem"]
    )
    assert problem_in(alone, 500, "internal-error").keys() == {*results[1]["problem"], "request_id"}
    assert 99 == balance(api, ann)


BAD_ITEMS: dict[str, dict[str, object]] = {
    "operations[1].op": {"op": "steal"},
    "operations[1].amount": {"amount": 0},
    "operations[1].account_id": {"account_id": "a b"},
    "operations[1].idempotency_key": {"idempotency_key": ""},
    "operations[1].description": {"description": ""},
    "operations[1].metadata": {"metadata": {"a": "\0"}},
    "operations[1].tenant_id": {"tenant_id": "acme"},
}


@pytest.mark.parametrize("field", BAD_ITEMS)
def test_a_batch_with_one_bad_item_is_refused_whole(
    api: httpx.Client, ann: str, field: str
) -> None:
    good = item("topup", ann, amount=1)
    answer = api.post("/v1/batch", json={"operations": [good, {**good, **BAD_ITEMS[field]}]})

    assert [field] == fields_in(answer)
    assert 100 == balance(api, ann)


@pytest.mark.parametrize("body", [{}, {"operations": []}, {"operations": {}}, {"operations": [1]}])
def test_a_batch_that_cannot_be_is_refused(api: httpx.Client, body: object) -> None:
    (field,) = fields_in(api.post("/v1/batch", json=body))

    assert field in {"operations", "operations[0]"}


def test_a_batch_may_have_ten_thousand_operations_and_no_more(api: httpx.Client, ann: str) -> None:
    operations = [item("topup", ann, amount=1) for _ in range(10_000)]
    most = api.post("/v1/batch", json={"operations": operations})
    over = api.post("/v1/batch", json={"operations": [*operations, operations[0]]})

    assert {201} == {each["status"] for each in most.json()["results"]}
    assert ["operations"] == fields_in(over)
    assert 10_100 == balance(api, ann)


def test_the_ledger_is_verified_over_http(api: httpx.Client, ann: str) -> None:
    one = api.post("/v1/audit/verify", json={"account_id": ann})
    everything = api.post("/v1/audit/verify")

    assert {
        "accounts": 1, "transactions": 1, "topped_up": 100, "consumed": 0, "balance": 100,
        "faults": [], "more_faults": False, "next": None,
    } == one.json()  # fmt: skip
    assert 200 == everything.status_code
    assert [] == everything.json()["faults"]
    assert ["account_id"] == fields_in(api.post("/v1/audit/verify", json={"account_id": "a b"}))
    assert ["after"] == fields_in(api.post("/v1/audit/verify", json={"after": "\0"}))


@pytest.mark.parametrize("path", ["/v1/nothing", "/v1/accounts/a/b", "/"])
def test_what_has_no_route_is_a_problem_too(api: httpx.Client, path: str) -> None:
    problem_in(api.get(path), 404, "route-not-found")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
def test_a_method_that_a_route_does_not_have_is_named(api: httpx.Client, method: str) -> None:
    problem_in(api.request(method, "/v1/accounts/ann"), 405, "method-not-allowed")


def test_without_a_key_nothing_is_shown(service: Service) -> None:
    with httpx.Client(base_url=service.url) as stranger:
        refused = stranger.get("/v1/accounts/ann")
        unknown = stranger.get("/v1/accounts/ann", headers={"Authorization": "Bearer tk_nobody"})

    problem_in(refused, 401, "not-authenticated")
    problem_in(unknown, 401, "key-unknown")
    assert refused.headers["WWW-Authenticate"].startswith("Bearer")


def test_every_operation_is_counted(api: httpx.Client, ann: str) -> None:
    def posted() -> float:
        lines = api.get("/metrics").text.splitlines()
        found = [
            line
            for line in lines
            if line.startswith("credits_operations_total{")
            and 'kind="topup"' in line
            and 'result="ok"' in line
        ]
        return float(found[0].rsplit(" ", 1)[1])

    before = posted()
    move(api, ann, "topups", 1, key="counted")

    assert before + 1 == posted()
