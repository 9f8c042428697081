"""Reads the `Idempotency-Key` of a request; what the key decides is the ledger's business.

The value is taken as it stands, quotes included: a key is only ever compared with itself.
"""

import re
from collections.abc import Iterable

from tollkeeper.web.errors import IdempotencyKeyInvalid, IdempotencyKeyMissing

MAX_KEY_LENGTH = 255
"""Characters of an idempotency key."""

_VISIBLE_ASCII = re.compile(rb"[\x21-\x7e]{1,255}")


def idempotency_key(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the key of a money write from the raw ASGI headers.

    Raises:
        IdempotencyKeyMissing: no such header.
        IdempotencyKeyInvalid: several of them, or not 1..255 visible ASCII characters.
    """
    found: bytes | None = None
    for name, value in headers:
        if name == b"idempotency-key":
            if found is not None:
                raise IdempotencyKeyInvalid(fault="was sent more than once")
            found = value
    if found is None:
        raise IdempotencyKeyMissing
    if _VISIBLE_ASCII.fullmatch(found) is None:
        raise IdempotencyKeyInvalid(
            fault=f"must be 1 to {MAX_KEY_LENGTH} visible ASCII characters without spaces"
        )
    return found.decode("ascii")
