"""Bodies: read whole, decoded as JSON whatever the content type says (`curl -d` calls it a form).

Every fault comes out as `RequestInvalid` that names the field; what a value means is not judged
here. A field is named by its path: `amount`, `operations[3].amount`, or `body` for the whole.
"""

import ast
import re
from typing import TypeVar

import msgspec
from litestar.types import Receive

from tollkeeper.kernel.cards import mask_cards
from tollkeeper.web.errors import FieldFault, RequestAborted, RequestInvalid

WHOLE_BODY = "body"
"""The field that is named when the body as such is wrong."""

MAX_ECHO_LENGTH = 200
"""Characters of a caller's own text that an answer repeats."""

T = TypeVar("T")

_LOCATED = re.compile(r"(?P<fault>.*) - at (?:`key` in )?`\$\.?(?P<path>.*)`", re.DOTALL)
_PATTERNED = re.compile(r"Expected `str` matching regex (?P<literal>.*)", re.DOTALL)
_END = r"(?![\s\S])"
_NAMED_FIELD = re.compile(
    r"Object (?:missing required|contains unknown) field `(?P<name>.*)`", re.DOTALL
)


async def read_body(receive: Receive) -> bytes:
    """Return the whole body; most come in one message and are not copied.

    Raises:
        RequestAborted: the caller went away first.
        BodyTooLarge: from `BodyLimit`, which counts the bytes.
    """
    parts = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise RequestAborted
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def decode_body(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Decode and validate a body.

    Raises:
        RequestInvalid: not JSON, not UTF-8, nested too deeply, or not what `decoder` takes.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise RequestInvalid(errors=(fault_of(error),)) from error
    except UnicodeDecodeError as error:
        raise RequestInvalid(errors=(_whole("is not valid UTF-8"),)) from error
    except msgspec.DecodeError as error:
        detail = f"is not JSON: {error}" if body else "is empty; send a JSON object"
        raise RequestInvalid(errors=(_whole(detail),)) from error
    except RecursionError as error:
        raise RequestInvalid(errors=(_whole("is nested too deeply"),)) from error


def fault_of(error: msgspec.ValidationError) -> FieldFault:
    """Read the field's path and the fault out of msgspec's message (it has no attributes)."""
    fault, path = mask_cards(str(error)), ""  # before anything is cut off
    if located := _LOCATED.fullmatch(fault):
        fault, path = located["fault"], located["path"]
    if named := _NAMED_FIELD.fullmatch(fault):
        name = named["name"][:MAX_ECHO_LENGTH]
        path = f"{path}.{name}" if path else name
        fault = "is required" if fault.startswith("Object missing") else "is not known here"
    if patterned := _PATTERNED.fullmatch(fault):
        pattern: str = ast.literal_eval(patterned["literal"])  # msgspec writes its repr
        fault = f"must match {pattern.replace(_END, '$')}"
    return FieldFault(field=path or WHOLE_BODY, detail=fault[:MAX_ECHO_LENGTH])


def _whole(detail: str) -> FieldFault:
    return FieldFault(field=WHOLE_BODY, detail=detail)
