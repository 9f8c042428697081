"""Request bodies in the OpenAPI document, for handlers that decode their bodies themselves.

The schema is msgspec's own for the struct that decodes the body, so the two cannot differ.
"""

from collections.abc import Iterable
from dataclasses import dataclass, make_dataclass
from typing import ClassVar

import msgspec
from litestar.openapi.spec import Components, Operation, Parameter, Schema

REFERENCE = "#/components/schemas/{name}"


@dataclass
class BodyOperation(Operation):
    """An operation with parameters and a body that Litestar's signature model does not know of."""

    body: ClassVar[type[msgspec.Struct]]
    more_parameters: ClassVar[tuple[Parameter, ...]] = ()

    def to_schema(self) -> dict[str, object]:
        """Return the operation with its body's schema and its parameters."""
        document: dict[str, object] = super().to_schema()
        (schema,), _ = msgspec.json.schema_components((self.body,), ref_template=REFERENCE)
        document["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
        if self.more_parameters:
            known = document.get("parameters", [])
            assert isinstance(known, list)
            document["parameters"] = [*known, *(p.to_schema() for p in self.more_parameters)]
        return document


def body_operation(
    body: type[msgspec.Struct], parameters: tuple[Parameter, ...] = ()
) -> type[BodyOperation]:
    """Return the class of an operation that takes `body` and, beside the path's, `parameters`."""
    return make_dataclass(
        f"{body.__name__}Operation",
        [],
        bases=(BodyOperation,),
        namespace={"body": body, "more_parameters": parameters},
    )


def body_components(bodies: Iterable[type[msgspec.Struct]]) -> Components:
    """Return the schemas that operations with these bodies refer to."""
    _, schemas = msgspec.json.schema_components(tuple(bodies), ref_template=REFERENCE)
    return Components(schemas={name: _Ready(document=schema) for name, schema in schemas.items()})


@dataclass
class _Ready(Schema):
    """A schema that is already a document."""

    document: dict[str, object] | None = None

    def to_schema(self) -> dict[str, object]:
        return self.document or {}
