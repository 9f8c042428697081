"""Request bodies in the OpenAPI document, for handlers that decode their bodies themselves.

The schema is msgspec's own for the struct that decodes the body, so the two cannot differ.
"""

from collections.abc import Iterable
from dataclasses import dataclass, make_dataclass
from typing import ClassVar

import msgspec
from litestar.openapi.spec import Components, Operation, Parameter, Reference, SecurityScheme

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


@dataclass
class BodyComponents(Components):
    """Components with the schemas of `bodies` beside those that Litestar finds by itself."""

    bodies: ClassVar[tuple[type[msgspec.Struct], ...]]

    def to_schema(self) -> dict[str, object]:
        """Return the components with the bodies' schemas."""
        document: dict[str, object] = super().to_schema()
        _, bodies = msgspec.json.schema_components(self.bodies, ref_template=REFERENCE)
        known = document.get("schemas", {})
        assert isinstance(known, dict)
        document["schemas"] = {**known, **bodies}
        return document


def body_components(
    bodies: Iterable[type[msgspec.Struct]], security: dict[str, SecurityScheme | Reference]
) -> Components:
    """Return the components of a document whose operations have these bodies."""
    kind = make_dataclass(
        "Components", [], bases=(BodyComponents,), namespace={"bodies": tuple(bodies)}
    )
    components: Components = kind(security_schemes=security)
    return components
