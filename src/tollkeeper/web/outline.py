"""An OpenAPI document, read into what the reference page shows of it.

Not the whole of OpenAPI 3.1: the part that `openapi.py` and msgspec write. Pure.
"""

import msgspec
from msgspec import field

from tollkeeper.web.problem import MEDIA_TYPE


class Schema(msgspec.Struct, rename="camel"):
    """The part of JSON Schema that our documents use."""

    ref: str = field(default="", name="$ref")
    type: str = ""
    format: str = ""
    title: str = ""
    description: str = ""
    const: str = ""
    enum: tuple[str, ...] = ()
    any_of: "tuple[Schema, ...]" = ()
    items: "Schema | bool | None" = None
    prefix_items: "tuple[Schema, ...]" = ()
    properties: "dict[str, Schema]" = {}
    required: tuple[str, ...] = ()
    minimum: int | float | None = None
    maximum: int | float | None = None
    min_items: int | None = None
    max_items: int | None = None
    min_length: int | None = None
    max_length: int | None = None
    default: object = None

    @property
    def shape(self) -> str:
        """The name of the component that this refers to, if it does."""
        return self.ref.rpartition("/")[2]


class Parameter(msgspec.Struct, rename="camel"):
    """A parameter of an operation."""

    name: str
    place: str = field(name="in")
    schema: Schema
    description: str = ""
    required: bool = False
    example: str | int | None = None


class Media(msgspec.Struct):
    """A body in one media type."""

    schema: Schema
    example: object = None


class Body(msgspec.Struct):
    """The body that an operation takes."""

    content: dict[str, Media]
    required: bool = False

    @property
    def media(self) -> Media:
        """Its one media type."""
        (media,) = self.content.values()
        return media


class Header(msgspec.Struct):
    """A header of an answer."""

    description: str


class Answer(msgspec.Struct):
    """What an operation answers with one status."""

    description: str
    content: dict[str, Media] = {}
    headers: dict[str, Header] = {}

    @property
    def is_problem(self) -> bool:
        """Whether its description is a list of problems, one a line."""
        return MEDIA_TYPE in self.content

    @property
    def shape(self) -> str:
        """The name of the component that is its body, empty without one; files come behind."""
        return next((media.schema.shape for media in self.content.values()), "")


class Operation(msgspec.Struct, rename="camel"):
    """One method of one path."""

    operation_id: str
    summary: str
    tags: tuple[str]
    responses: dict[str, Answer]
    security: tuple[dict[str, tuple[str, ...]], ...]
    description: str = ""
    parameters: tuple[Parameter, ...] = ()
    request_body: Body | None = None

    @property
    def scope(self) -> str:
        """The scope that its key needs, empty when it needs no key."""
        scopes = [scope for need in self.security for scopes in need.values() for scope in scopes]
        return scopes[0] if scopes else ""


class Route(msgspec.Struct):
    """An operation and where it is."""

    method: str
    path: str
    operation: Operation


class Info(msgspec.Struct):
    """What the document is about."""

    title: str
    version: str
    description: str


class Group(msgspec.Struct):
    """A tag: operations that belong together."""

    name: str
    description: str


class Scheme(msgspec.Struct):
    """How a caller says who it is."""

    description: str


class Components(msgspec.Struct, rename="camel"):
    """The shapes that operations share, and how they know their callers."""

    schemas: dict[str, Schema]
    security_schemes: dict[str, Scheme]


class Document(msgspec.Struct):
    """The part of an OpenAPI document that the page shows."""

    info: Info
    tags: tuple[Group, ...]
    paths: dict[str, dict[str, Operation]]
    components: Components

    def routes_of(self, group: Group) -> list[Route]:
        """Return the routes of a group, in the document's order."""
        return [
            Route(method.upper(), path, operation)
            for path, methods in self.paths.items()
            for method, operation in methods.items()
            if group.name in operation.tags
        ]
