"""Pages: how many items one has, and where it begins. What the items are is not known here."""

from collections.abc import Mapping

from litestar.openapi.spec import Parameter, Schema
from litestar.openapi.spec.enums import OpenAPIType

from tollkeeper.web.errors import FieldFault, RequestInvalid

PAGE_DEFAULT = 100
"""Items in a page that does not ask for another number."""

PAGE_LIMIT = 1_000
"""Most items in one page."""

LARGEST = 2**63 - 1

AFTER = Parameter(
    name="after",
    param_in="query",
    required=False,
    description="`next` of the page before; left out: from the start",
    schema=Schema(type=OpenAPIType.STRING, pattern="^[0-9]{1,19}$"),
)
LIMIT = Parameter(
    name="limit",
    param_in="query",
    required=False,
    description="items in the page",
    schema=Schema(type=OpenAPIType.INTEGER, minimum=1, maximum=PAGE_LIMIT, default=PAGE_DEFAULT),
    example=10,
)


def page_start(query: Mapping[str, str], *, most: int = LARGEST) -> int:
    """Return the number behind which the page begins; no item has one above `most`.

    Raises:
        RequestInvalid: it is not a number.
    """
    return min(most, _whole_number("after", query.get("after", "0"), 0, LARGEST))


def page_limit(query: Mapping[str, str]) -> int:
    """Return how many items the page shall have.

    Raises:
        RequestInvalid: it is not a number, or outside the bounds.
    """
    return _whole_number("limit", query.get("limit", str(PAGE_DEFAULT)), 1, PAGE_LIMIT)


def _whole_number(field: str, text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and least <= int(text) <= most):
        detail = f"must be a whole number from {least} to {most}"
        raise RequestInvalid(errors=(FieldFault(field=field, detail=detail),))
    return int(text)
