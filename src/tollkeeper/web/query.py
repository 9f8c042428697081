"""Query strings: a route names the parameters it knows, and every other one is a fault.

A misspelt parameter that is ignored gives an answer to another question. What a value means is not
judged here.
"""

from urllib.parse import parse_qsl

from litestar.types import Scope

from tollkeeper.telemetry.cards import mask_cards
from tollkeeper.web.body import MAX_ECHO_LENGTH
from tollkeeper.web.errors import FieldFault, RequestInvalid

WHOLE_QUERY = "query"
"""The field that is named when a parameter has no name."""


def query_of(scope: Scope, *known: str) -> dict[str, str]:
    """Return the parameters of a request, each of them known and given once.

    Raises:
        RequestInvalid: one is not known, or was given more than once.
    """
    found: dict[str, str] = {}
    if not scope["query_string"]:
        return found
    query = scope["query_string"].decode("latin-1")
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            raise _invalid(mask_cards(name)[:MAX_ECHO_LENGTH] or WHOLE_QUERY, _unknown(known))
        if name in found:
            raise _invalid(name, "was given more than once")
        found[name] = value
    return found


def refuse_query(scope: Scope) -> None:
    """Refuse a request that has a query parameter.

    Raises:
        RequestInvalid: it has one.
    """
    query_of(scope)


def _unknown(known: tuple[str, ...]) -> str:
    if not known:
        return "is not known here; this route takes no query parameters"
    return f"is not known here; this route takes {', '.join(known)}"


def _invalid(field: str, detail: str) -> RequestInvalid:
    return RequestInvalid(errors=(FieldFault(field=field, detail=detail),))
