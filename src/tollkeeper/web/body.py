"""Bodies: read whole, decoded as JSON whatever the content type says (`curl -d` calls it a form).

A member that is given twice is a fault: who reads the first of two amounts and who reads the last
would not agree on what was asked (RFC 8259, section 4). Every fault comes out as `RequestInvalid`
that names the field; what a value means is not judged here. A field is named by its path:
`amount`, `operations[3].amount`, or `body` for the whole.
"""

import ast
import json
import re
from typing import TypeVar

import msgspec
from litestar.types import Receive

from tollkeeper.telemetry.cards import mask_cards
from tollkeeper.web.errors import FieldFault, RequestAborted, RequestInvalid

WHOLE_BODY = "body"
"""The field that is named when the body as such is wrong."""

MAX_ECHO_LENGTH = 200
"""Characters of a caller's own text that an answer repeats."""

FAULT_LENGTH = 4_000
"""Characters of a fault that are looked at: masking 8 MB of a hostile name took half a minute."""

LONGEST_CARD = 80
"""Characters of a card number with a separator of a URL (`%20`) after each digit."""

T = TypeVar("T")

_ENCODER = msgspec.json.Encoder()
_LONE_SURROGATE = re.compile(
    rb"(?<!\\)(?:\\\\)*"  # not the text of a backslash and ud800
    rb"(?:\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2})"
)

_LOCATED = re.compile(r"(?P<fault>.*) - at (?:`key` in )?`\$\.?(?P<path>.*)`", re.DOTALL)
_PATTERNED = re.compile(r"Expected `str` matching regex (?P<literal>.*)", re.DOTALL)
_PLACE = re.compile(r"[`'] - at (?:`key` in )?`\$[A-Za-z0-9_.\[\]]*`\Z")
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
        RequestInvalid: not JSON, not UTF-8, nested too deeply, a member given twice, or not what
            `decoder` takes.
    """
    try:
        decoded = decoder.decode(body)
    except msgspec.ValidationError as error:
        raise RequestInvalid(errors=(fault_of(error),)) from error
    except UnicodeDecodeError as error:
        raise RequestInvalid(errors=(_whole("is not valid UTF-8"),)) from error
    except msgspec.DecodeError as error:
        raise RequestInvalid(errors=(_whole(_malformed(body, error)),)) from error
    except RecursionError as error:
        raise RequestInvalid(errors=(_whole("is nested too deeply"),)) from error
    if _may_repeat(body, decoded):
        _refuse_repeated(body)
    return decoded


def _malformed(body: bytes, error: msgspec.DecodeError) -> str:
    if not body:
        return "is empty; send a JSON object"
    # msgspec reports half of a surrogate pair as an early end.
    if _LONE_SURROGATE.search(body):
        return "is not JSON text: it has half of a surrogate pair (such as `\\ud800`)"
    return f"is not JSON: {error}"


def _may_repeat(body: bytes, decoded: object) -> bool:
    """Say whether a member may stand in `body` twice; a count, where looking costs ten times more.

    A member has a colon, and structs of bodies leave out defaults: what is decoded, written again,
    has as many colons as the body unless something was dropped. Escapes may hide colons.
    """
    if b"\\u" in body:
        return True
    try:
        return body.count(b":") != _ENCODER.encode(decoded).count(b":")
    except (OverflowError, RecursionError):  # larger or deeper than is written; judged elsewhere
        return True


def _refuse_repeated(body: bytes) -> None:
    def check(members: list[tuple[str, object]]) -> None:
        names = set()
        for name, _ in members:
            if name in names:
                named = mask_cards(name[:FAULT_LENGTH])[:MAX_ECHO_LENGTH] or WHOLE_BODY
                fault = FieldFault(field=named, detail="was given more than once")
                raise RequestInvalid(errors=(fault,))
            names.add(name)

    try:
        # Numbers stay text: they were judged before, and turning long ones costs quadratic time.
        json.loads(body, object_pairs_hook=check, parse_int=str, parse_float=str)
    except RecursionError as error:
        raise RequestInvalid(errors=(_whole("is nested too deeply"),)) from error


def fault_of(error: msgspec.ValidationError) -> FieldFault:
    """Read the field's path and the fault out of msgspec's message (it has no attributes)."""
    fault, path = _bounded(str(error)), ""
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


def _bounded(text: str) -> str:
    """Return a fault, masked; of a long one the beginning and the place."""
    if len(text) <= FAULT_LENGTH:
        return mask_cards(text)
    # The cut may have taken the end from a card number, which is not seen as one then.
    beginning = mask_cards(text[:FAULT_LENGTH])[:-LONGEST_CARD]
    place = _PLACE.search(text, len(text) - MAX_ECHO_LENGTH)
    return beginning + (place[0] if place else "`")


def _whole(detail: str) -> FieldFault:
    return FieldFault(field=WHOLE_BODY, detail=detail)
