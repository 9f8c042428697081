"""What the OpenAPI document says of routes whose handlers take the raw request and answer bytes.

A route states its facts once, as a `RouteFacts`. Schemas are msgspec's own for the structs that
decode the bodies and encode the answers; problems are rows of the table that answers them. So
neither can differ from what the route does. Nothing here runs while a request is served.

What goes without saying is added here: a route that takes a key can answer everything that the
table says about keys (401, 403), too many failures to show one (429) and about a service that
cannot answer now (503); one that takes a body can find it invalid, broken off (400) or too large
(413).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from typing import Annotated, ClassVar

import msgspec
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.spec import Components, Operation, Parameter, SecurityScheme
from msgspec import Meta

from tollkeeper.kernel.errors import TollkeeperError
from tollkeeper.kernel.principal import Scope
from tollkeeper.web.errors import BodyTooLarge, RequestAborted, RequestInvalid, TooManyFailures
from tollkeeper.web.problem import MEDIA_TYPE, ProblemKind, ProblemTable, kind_of

JSON = "application/json"

REFERENCE = "#/components/schemas/{name}"

SECURITY = "key"
"""Name of the one security scheme: a bearer key."""

_UNSAID_STATUSES = frozenset({401, 403, 503})
_UNSAID_OF_BODIES = (RequestInvalid, RequestAborted, BodyTooLarge)

_HEADERS: Mapping[int, Mapping[str, dict[str, object]]] = {
    401: {
        "WWW-Authenticate": {"description": "`Bearer`, RFC 6750", "schema": {"type": "string"}},
    },
    403: {
        "WWW-Authenticate": {
            "description": "names the scope that is needed", "schema": {"type": "string"}
        },
    },
    429: {"Retry-After": {"description": "seconds to wait", "schema": {"type": "integer"}}},
    503: {"Retry-After": {"description": "seconds to wait", "schema": {"type": "integer"}}},
}  # fmt: skip


class FieldFaultView(msgspec.Struct):
    """One thing that is wrong with a request."""

    field: Annotated[str, Meta(description="a path, such as `operations[3].amount`")]
    detail: str


class ProblemView(msgspec.Struct):
    """A problem document (RFC 9457). More members carry the facts of its type."""

    type: Annotated[str, Meta(description="stable; decide by this", examples=["urn:..."])]
    title: Annotated[str, Meta(description="what the type means")]
    status: int
    detail: Annotated[str, Meta(description="what happened, for people")] | msgspec.UnsetType = (
        msgspec.UNSET
    )
    request_id: (
        Annotated[str, Meta(description="also in `X-Request-Id` and in the service's log")]
        | msgspec.UnsetType
    ) = msgspec.UNSET
    errors: (
        Annotated[list[FieldFaultView], Meta(description="`invalid-request`: each field at fault")]
        | msgspec.UnsetType
    ) = msgspec.UNSET


@dataclass(frozen=True, slots=True)
class NextStep:
    """What an answer leads to: an operation, and the member that is its parameter of that name."""

    operation: str
    parameter: str

    def to_schema(self) -> dict[str, object]:
        """Return a Link Object of OpenAPI 3.1."""
        return {
            "operationId": self.operation,
            "parameters": {self.parameter: f"$response.body#/{self.parameter}"},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer that is no problem document; without a `view` its body is plain text, or empty.

    `files` are the media types of files that it can be instead.
    """

    description: str
    view: type[msgspec.Struct] | None = None
    headers: Mapping[str, dict[str, object]] = field(default_factory=dict)
    next_steps: tuple[NextStep, ...] = ()
    files: tuple[str, ...] = ()
    is_empty: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """A JSON body: the struct that decodes it, and one to paste that works as it stands."""

    struct: type[msgspec.Struct]
    example: Mapping[str, object]
    is_required: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteFacts:
    """What the document says of a route beside its path; without a `scope` it needs no key."""

    summary: str
    tag: str
    answers: Mapping[int, Answer]
    problems: tuple[type[TollkeeperError], ...] = ()
    parameters: tuple[Parameter, ...] = ()
    body: Body | None = None
    scope: Scope | None = None


@dataclass
class DocumentedOperation(Operation):
    """An operation whose parameters, body, answers and security are its route's facts."""

    facts: ClassVar[RouteFacts]
    table: ClassVar[ProblemTable]

    def to_schema(self) -> dict[str, object]:
        """Return what Litestar knows of the handler (id, description) with the facts."""
        facts = self.facts
        document: dict[str, object] = {
            "operationId": self.operation_id,
            "summary": facts.summary,
            "description": self.description,
            "tags": [facts.tag],
        }
        document["security"] = [] if facts.scope is None else [{SECURITY: [facts.scope.value]}]
        if facts.parameters:
            document["parameters"] = [parameter.to_schema() for parameter in facts.parameters]
        if facts.body is not None:
            content = {"schema": _schema_of(facts.body.struct), "example": facts.body.example}
            document["requestBody"] = {
                "required": facts.body.is_required,
                "content": {JSON: content},
            }
        document["responses"] = _responses(facts, self.table)
        return document


def documented(facts: RouteFacts, table: ProblemTable) -> type[DocumentedOperation]:
    """Return the `operation_class` of a route with these facts."""
    return make_dataclass(
        "DocumentedRoute",
        [],
        bases=(DocumentedOperation,),
        namespace={"facts": facts, "table": table},
    )


def problem_kinds(facts: RouteFacts, table: ProblemTable) -> tuple[ProblemKind, ...]:
    """Return every problem that a route can answer, by status, each type once."""
    kinds = [kind_of(error, table) for error in facts.problems]
    if facts.body is not None:
        kinds += [kind_of(error, table) for error in _UNSAID_OF_BODIES]
    if facts.scope is not None:
        kinds += [kind for kind in table.values() if kind.status in _UNSAID_STATUSES]
        kinds.append(kind_of(TooManyFailures, table))
    return distinct(kinds)


def distinct(kinds: Iterable[ProblemKind]) -> tuple[ProblemKind, ...]:
    """Return the kinds by status, each type once."""
    return tuple({kind.type: kind for kind in sorted(kinds, key=lambda k: k.status)}.values())


def document_components(handlers: Sequence[HTTPRouteHandler]) -> Components:
    """Return the security scheme, and the schemas that the facts of these routes name."""
    structs: list[type[msgspec.Struct]] = [ProblemView]
    for handler in handlers:
        if issubclass(handler.operation_class, DocumentedOperation):
            facts = handler.operation_class.facts
            structs += [answer.view for answer in facts.answers.values() if answer.view]
            structs += [facts.body.struct] if facts.body else []
    scheme = SecurityScheme(
        type="http",
        scheme="bearer",
        description="An API key: `Authorization: Bearer <key>`. It carries scopes, and may be "
        "bound to a tenant: then it sees and moves only the accounts of that tenant.",
    )
    kind = make_dataclass(
        "Components", [], bases=(_Components,), namespace={"structs": tuple(structs)}
    )
    components: Components = kind(security_schemes={SECURITY: scheme})
    return components


@dataclass
class _Components(Components):
    structs: ClassVar[tuple[type[msgspec.Struct], ...]]

    def to_schema(self) -> dict[str, object]:
        document: dict[str, object] = super().to_schema()
        _, schemas = msgspec.json.schema_components(self.structs, ref_template=REFERENCE)
        document["schemas"] = schemas
        return document


def _responses(facts: RouteFacts, table: ProblemTable) -> dict[str, dict[str, object]]:
    responses: dict[str, dict[str, object]] = {}
    for status, answer in facts.answers.items():
        responses[str(status)] = {
            "description": answer.description,
            **({"headers": answer.headers} if answer.headers else {}),
            **({} if answer.is_empty else {"content": _content(answer)}),
        }
        if answer.next_steps:
            links = {step.operation: step.to_schema() for step in answer.next_steps}
            responses[str(status)] |= {"links": links}
    kinds = problem_kinds(facts, table)
    for status in sorted({kind.status for kind in kinds}):
        named = [f"`{kind.type}`: {kind.title}" for kind in kinds if kind.status == status]
        headers = _HEADERS.get(status)
        responses.setdefault(
            str(status),
            {
                "description": "\n".join(named),
                **({"headers": headers} if headers else {}),
                "content": {MEDIA_TYPE: {"schema": _schema_of(ProblemView)}},
            },
        )
    return responses


def _content(answer: Answer) -> dict[str, dict[str, object]]:
    files = answer.files if answer.view else ("text/plain",)
    content: dict[str, dict[str, object]] = {}
    if answer.view:
        content[JSON] = {"schema": _schema_of(answer.view)}
    return content | {kind: {"schema": {"type": "string"}} for kind in files}


def _schema_of(struct: type[msgspec.Struct]) -> dict[str, object]:
    (schema,), _ = msgspec.json.schema_components((struct,), ref_template=REFERENCE)
    return schema
