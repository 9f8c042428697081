"""How the reference page words an outline: fields, types, limits, examples, problems.

Not how it looks: that is `templates/reference.html`, which asks for these words. Pure.
"""

import re
import shlex
from dataclasses import dataclass, fields
from urllib.parse import quote, urlencode

import msgspec
from markupsafe import Markup, escape

from tollkeeper.web.outline import Operation, Parameter, Route, Schema
from tollkeeper.web.problem import FRAMEWORK_PROBLEMS, URN, ProblemKind, ProblemTable

_CODE = re.compile(r"`([^`]+)`")

_ONE_LINE = 60
"""Bytes of an example body that stay on one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TypePart:
    """A piece of a type's name; `shape` is the component it links to, empty for plain words."""

    text: str
    shape: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldRow:
    """A member of an object, or a parameter, which has a `place`."""

    name: str
    parts: tuple[TypePart, ...]
    is_required: bool
    notes: tuple[str, ...]
    description: str
    place: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemRow:
    """One type of problem; `members` carry its facts beside the standard ones."""

    name: str
    type: str
    status: int
    title: str
    members: tuple[str, ...]


def members_of(shape: Schema) -> tuple[FieldRow, ...]:
    """Return the members of an object, the required ones first."""
    rows = [
        FieldRow(
            name=name,
            parts=parts_of(member),
            is_required=name in shape.required,
            notes=notes_of(member),
            description=_description_of(member),
        )
        for name, member in shape.properties.items()
    ]
    return tuple(sorted(rows, key=lambda row: not row.is_required))


def parameters_of(operation: Operation) -> tuple[FieldRow, ...]:
    """Return the parameters of an operation."""
    return tuple(_parameter_row(parameter) for parameter in operation.parameters)


def parts_of(schema: Schema) -> tuple[TypePart, ...]:
    """Return a type in words: `array of Fault`, `string (date-time) or null`."""
    if schema.ref:
        return (TypePart(text=schema.shape, shape=schema.shape),)
    if schema.any_of:
        found: list[TypePart] = []
        for index, choice in enumerate(schema.any_of):
            found += [TypePart(text=" or ")] if index else []
            found += parts_of(choice)
        return tuple(found)
    # Of an array of fixed length each place is said; in ours all places are alike.
    inner = schema.prefix_items[0] if schema.prefix_items else schema.items
    if isinstance(inner, Schema):
        return (TypePart(text="array of "), *parts_of(inner))
    name = schema.type or ("string" if schema.enum or schema.const else "any value")
    return (TypePart(text=f"{name} ({schema.format})" if schema.format else name),)


def notes_of(schema: Schema) -> tuple[str, ...]:
    """Return the limits of a value in words. A pattern is for tools: descriptions say it."""
    notes = [
        *_range("", schema.minimum, schema.maximum),
        *_range(" items", schema.min_items, schema.max_items),
        *_range(" characters", schema.min_length, schema.max_length),
    ]
    if choices := (schema.enum or ((schema.const,) if schema.const else ())):
        notes.append(" or ".join(f"`{choice}`" for choice in choices))
    if schema.default is not None:
        notes.append(f"default `{msgspec.json.encode(schema.default).decode()}`")
    for choice in schema.any_of:
        notes += notes_of(choice)
    return tuple(notes)


def curl_of(route: Route, address: str) -> str:
    """Return a command that works as it stands where `$KEY` holds an API key."""
    operation, path = route.operation, route.path
    query: dict[str, str] = {}
    headers = ["Authorization: Bearer $KEY"] if operation.scope else []
    for parameter in operation.parameters:
        example = str(parameter.example or "")
        if parameter.place == "path":
            path = path.replace(f"{{{parameter.name}}}", quote(example, safe=""))
        elif parameter.place == "header" and example:
            headers.append(f"{parameter.name}: {example}")
        elif example:
            query[parameter.name] = example
    url = f"{address}{path}" + (f"?{urlencode(query)}" if query else "")
    lines = [f'curl "{url}"' if query else f"curl {url}"]
    lines += [f'-H "{header}"' for header in headers]
    # `curl` sends GET by itself, and POST what has a body.
    if route.method != ("GET" if operation.request_body is None else "POST"):
        lines[0] += f" -X {route.method}"
    if operation.request_body is not None:
        body = msgspec.json.encode(operation.request_body.media.example)
        if len(body) > _ONE_LINE:
            body = msgspec.json.format(body, indent=2)
        lines.append(f"-d {shlex.quote(body.decode())}")
    return " \\\n  ".join(lines)


def problem_rows(table: ProblemTable) -> tuple[ProblemRow, ...]:
    """Return each type of problem once, by status."""
    rows = {kind.type: _problem_row(kind, ()) for kind in FRAMEWORK_PROBLEMS}
    for error, kind in table.items():
        members = () if kind.private else tuple(item.name for item in fields(error))
        rows[kind.type] = _problem_row(kind, members)
    return tuple(sorted(rows.values(), key=lambda row: (row.status, row.name)))


def prose(text: str) -> Markup:
    """Return text as HTML: what stands in `backquotes` is code, a problem's type a link."""
    pieces = _CODE.split(text)
    for index, piece in enumerate(pieces):
        if index % 2 == 0:
            pieces[index] = escape(piece)
        elif piece.startswith(URN):
            name = piece.removeprefix(URN)
            pieces[index] = Markup('<a href="#problem-{0}"><code>{0}</code></a>').format(name)
        else:
            pieces[index] = Markup("<code>{}</code>").format(piece)
    return Markup("").join(pieces)


def _parameter_row(parameter: Parameter) -> FieldRow:
    return FieldRow(
        name=parameter.name,
        parts=parts_of(parameter.schema),
        is_required=parameter.required,
        notes=notes_of(parameter.schema),
        description=parameter.description,
        place=parameter.place,
    )


def _problem_row(kind: ProblemKind, members: tuple[str, ...]) -> ProblemRow:
    return ProblemRow(
        name=kind.type.removeprefix(URN),
        type=kind.type,
        status=kind.status,
        title=kind.title,
        members=members,
    )


def _range(unit: str, least: float | None, most: float | None) -> tuple[str, ...]:
    if least is None and most is None:
        return ()
    if most is None:
        return (f"at least {least:,}{unit}",)
    return (f"{least or 0:,} to {most:,}{unit}",)


def _description_of(schema: Schema) -> str:
    inner = (choice.description for choice in schema.any_of)
    return schema.description or next((text for text in inner if text), "")
