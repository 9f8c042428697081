"""Walks over every route of a service's OpenAPI document with keys of two tenants.

The document says which routes there are, which scope each needs and what a request of it looks
like; nothing of that is repeated. A `House` makes tenants with objects of every kind.
"""

import copy
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import quote

import asyncpg
import httpx

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Operation:
    """An operation of the document."""

    name: str
    method: str
    path: str
    scope: str
    parameters: tuple[Mapping[str, object], ...]
    body: object
    needs_body: bool


@dataclass(frozen=True)
class World:
    """Objects of one tenant; `marks` stand in what is the tenant's and in no request.

    `shared` names what is nobody's and has parts of the tenant in it.
    """

    tenant: str
    objects: Mapping[str, str]
    shared: Mapping[str, str]
    token: str
    marks: tuple[str, ...] = field(default=())


class House(Protocol):
    """A running service with its databases, and an administrator's key."""

    http: httpx.Client
    api_key: str
    context_ids: frozenset[str]
    """Members of a request that name no object."""

    operators_alone: Mapping[str, tuple[int, int]]
    """What no tenant's key may do, its own included: what that is answered, and an operator."""

    def world(self) -> World:
        """Make a tenant with one object of each kind."""
        ...

    def rows_of(self, world: World) -> list[str]:
        """Return every row of every table that names an object of the tenant."""
        ...


def operations_of(http: httpx.Client) -> list[Operation]:
    """Return every operation of a service that needs a key."""
    document = http.get("/schema/openapi.json").json()
    found = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            scopes = [scope for need in operation["security"] for scope in need["key"]]
            if not scopes:
                continue
            request = operation.get("requestBody")
            (content,) = request["content"].values() if request else ({},)
            found.append(
                Operation(
                    name=operation["operationId"],
                    method=method.upper(),
                    path=path,
                    scope=scopes[0],
                    parameters=tuple(operation.get("parameters", ())),
                    body=content.get("example"),
                    needs_body=bool(request and request["required"]),
                )
            )
    return found


def crossed(
    house: House, operation: Operation, world: World, *, other: World, bodies: list[object]
) -> list[httpx.Response]:
    """Ask for a tenant's objects with another's key, then with its own; return what other got."""
    before = house.rows_of(world)
    answers = [ask(house, operation, world, token=other.token, body=body) for body in bodies]
    for answer in answers:
        assert_unseen(answer, world)
    assert before == house.rows_of(world), f"{operation.name} changed what is another tenant's"
    own = ask(house, operation, world, token=world.token, body=bodies[0])
    if operation.name in house.operators_alone:
        operators = ask(house, operation, world, token=house.api_key, body=bodies[0])
        answered = (own.status_code, operators.status_code)
        assert house.operators_alone[operation.name] == answered, operators.text
        return answers
    assert own.is_success, f"{operation.name} as its owner: {own.text}"
    for result in own.json().get("results", ()):
        assert result["status"] < 300, f"{operation.name} as its owner: {own.text}"
    return answers


def assert_unseen(answer: httpx.Response, world: World) -> None:
    said = f"{answer.headers} {answer.text}"
    assert [] == [mark for mark in world.marks if re.search(rf"\b{re.escape(mark)}\b", said)]
    if answer.is_success and "results" not in answer.json():
        assert [] == [name for name in world.objects.values() if f'"{name}"' in said]


def ask(
    house: House, operation: Operation, world: World, *, token: str | None, body: object
) -> httpx.Response:
    """Send the request that the document describes, for the objects of a world."""
    path, query, headers = operation.path, {}, {}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    for parameter in operation.parameters:
        name, example = str(parameter["name"]), parameter.get("example")
        match parameter["in"]:
            case "path":
                path = path.replace(f"{{{name}}}", quote(object_of(world, name), safe=""))
            case "header":
                headers[name] = f"{example}-{next(_numbers)}"
            case _ if example is not None:
                query[name] = str(example)
    assert "{" not in path, f"{path} names what its parameters do not"
    content = None if body is None else json.dumps(body)
    return house.http.request(
        operation.method, path, params=query, headers=headers, content=content
    )


def bodies_of(house: House, operation: Operation, world: World) -> list[object]:
    """Return the example for a world's objects; and no body, where none is needed."""
    bodies = [named(house, world, operation.body)]
    if operation.body is not None and not operation.needs_body:
        bodies.append(None)
    return bodies


def named(house: House, world: World, example: object) -> object:
    """Return an example body with the objects of a world in it, at any depth."""
    if isinstance(example, list):
        return [named(house, world, item) for item in example]
    if not isinstance(example, dict):
        return example
    found = copy.copy(example)
    for name, value in example.items():
        if name in house.context_ids:
            found[name] = f"{value}-{next(_numbers)}"
        elif name.endswith("_id"):
            found[name] = object_of(world, name)
        elif name != "metadata":
            found[name] = named(house, world, value)
    return found


def object_of(world: World, name: str) -> str:
    known = {**world.shared, **world.objects}
    assert name in known, f"no object for {name}: let the house make one"
    return known[name]


def lists_of(body: object) -> list[tuple[str, list[dict[str, object]]]]:
    """Return the members of a body that are lists of operations."""
    members = body.items() if isinstance(body, dict) else ()
    return [
        (name, value)
        for name, value in members
        if isinstance(value, list)
        and all(isinstance(item, dict) and "op" in item for item in value)
    ]


async def read_rows(dsns: tuple[str, ...], names: tuple[str, ...]) -> list[str]:
    """Read all tables, so that a new one is looked at too; when keys were used is no secret."""
    rows: list[str] = []
    named_there = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in names))
    for dsn in dsns:
        connection = await asyncpg.connect(dsn)
        try:
            tables = await connection.fetch(
                "SELECT quote_ident(relname) FROM pg_class WHERE relkind IN ('r', 'p')"
                " AND NOT relispartition AND relnamespace = 'public'::regnamespace"
                " AND relname <> 'api_key_uses' ORDER BY relname"
            )
            for (table,) in tables:
                texts = await connection.fetch(f"SELECT t::text FROM {table} AS t ORDER BY 1")
                rows += [f"{table} {text}" for (text,) in texts if named_there.search(text)]
        finally:
            await connection.close()
    return rows
