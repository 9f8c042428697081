from dataclasses import dataclass

import msgspec
import pytest

from tollkeeper.kernel.errors import TollkeeperError
from tollkeeper.web.outline import Operation, Route, Schema
from tollkeeper.web.problem import URN, ProblemKind
from tollkeeper.web.wording import curl_of, members_of, notes_of, parts_of, problem_rows, prose


def schema(**members: object) -> Schema:
    return msgspec.convert(members, Schema)


def words(of: Schema) -> str:
    return "".join(part.text for part in parts_of(of))


@pytest.mark.parametrize(
    ("expected", "members"),
    [
        ("string", {"type": "string"}),
        ("string (date-time)", {"type": "string", "format": "date-time"}),
        ("string or null", {"anyOf": [{"type": "string"}, {"type": "null"}]}),
        ("array of Fault", {"items": {"$ref": "#/components/schemas/Fault"}, "type": "array"}),
        ("string", {"enum": ["a", "b"]}),
        ("any value", {}),
    ],
)
def test_type_in_words(expected: str, members: dict[str, object]) -> None:
    assert expected == words(schema(**members))


def test_type_of_a_component_links_to_it() -> None:
    (part,) = parts_of(schema(**{"$ref": "#/components/schemas/AccountView"}))

    assert ("AccountView", "AccountView") == (part.text, part.shape)


@pytest.mark.parametrize(
    ("expected", "members"),
    [
        ("1 to 10,000 items", {"minItems": 1, "maxItems": 10_000}),
        ("at least 3", {"minimum": 3}),
        ("0 to 7 characters", {"maxLength": 7}),
        ("`topup` or `consume`", {"enum": ["topup", "consume"]}),
        ("`open`", {"const": "open"}),
        ("default `100`", {"default": 100}),
        ("1 to 9", {"anyOf": [{"minimum": 1, "maximum": 9}, {"type": "null"}]}),
    ],
)
def test_limits_in_words(expected: str, members: dict[str, object]) -> None:
    assert (expected,) == notes_of(schema(**members))


def test_required_members_come_first() -> None:
    shape = schema(properties={"note": {}, "amount": {}, "why": {}}, required=["amount"])

    assert ["amount", "note", "why"] == [row.name for row in members_of(shape)]


def test_prose_is_escaped_and_knows_code_and_problems() -> None:
    assert (
        "a &lt;b&gt; <code>&lt;key&gt;</code> "
        '<a href="#problem-overloaded"><code>overloaded</code></a>'
        == prose(f"a <b> `<key>` `{URN}overloaded`")
    )


def test_example_quotes_what_a_shell_would_read() -> None:
    operation = msgspec.convert(
        {
            "operationId": "pay",
            "summary": "Pay",
            "tags": ["money"],
            "responses": {},
            "security": [{"key": ["credits:write"]}],
            "parameters": [
                {"name": "id", "in": "path", "schema": {}, "example": "a/b c"},
                {"name": "X-Once", "in": "header", "schema": {}, "example": "n-1"},
                {"name": "limit", "in": "query", "schema": {}, "example": 10},
                {"name": "after", "in": "query", "schema": {}},
            ],
            "requestBody": {
                "content": {"application/json": {"schema": {}, "example": {"note": "it's"}}}
            },
        },
        Operation,
    )

    assert (
        'curl "http://here/pay/a%2Fb%20c?limit=10" \\\n'
        '  -H "Authorization: Bearer $KEY" \\\n'
        '  -H "X-Once: n-1" \\\n'
        """  -d '{"note":"it'"'"'s"}'"""
        == curl_of(Route("POST", "/pay/{id}", operation), "http://here")
    )


@pytest.mark.parametrize(
    ("expected", "method", "has_body"),
    [
        ("curl http://here/pay", "GET", False),
        ("curl http://here/pay -X POST", "POST", False),
        ("curl http://here/pay \\\n  -d '{}'", "POST", True),
        ("curl http://here/pay -X PUT \\\n  -d '{}'", "PUT", True),
        ("curl http://here/pay -X DELETE", "DELETE", False),
    ],
)
def test_example_names_the_method_where_curl_would_take_another(
    expected: str, method: str, has_body: bool
) -> None:
    members: dict[str, object] = {
        "operationId": "pay", "summary": "Pay", "tags": ["money"], "responses": {}, "security": [],
    }  # fmt: skip
    if has_body:
        members["requestBody"] = {"content": {"application/json": {"schema": {}, "example": {}}}}
    operation = msgspec.convert(members, Operation)

    assert expected == curl_of(Route(method, "/pay", operation), "http://here")


@dataclass(eq=False, kw_only=True)
class PurseEmpty(TollkeeperError):
    available: int


@dataclass(eq=False, kw_only=True)
class Broken(TollkeeperError):
    secret: str


def test_problems_are_listed_by_status_with_their_facts_unless_private() -> None:
    rows = problem_rows(
        {
            Broken: ProblemKind(503, URN + "broken", "Broken", private=True),
            PurseEmpty: ProblemKind(402, URN + "purse-empty", "Purse empty"),
        }
    )

    assert [
        ("malformed-http", ()),
        ("purse-empty", ("available",)),
        ("route-not-found", ()),
        ("method-not-allowed", ()),
        ("head-too-large", ()),
        ("internal-error", ()),
        ("broken", ()),
    ] == [(row.name, row.members) for row in rows]
