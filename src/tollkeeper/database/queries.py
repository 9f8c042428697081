"""Reads `queries.sql` files: named blocks, so that no SQL stands in Python.

A block begins with a line `-- name --`; comment lines below it state its purpose. The text is sent
as it stands: nothing is ever formatted into it.
"""

import re
from importlib.resources import files

_HEADER = re.compile(r"^-- ([a-z][a-z0-9_]*) --$", re.MULTILINE)


def load_queries(package: str) -> dict[str, str]:
    """Return the blocks of `sql/queries.sql` in `package` by name.

    Raises:
        ValueError: text before the first block, or a name that occurs twice.
    """
    text = files(package).joinpath("sql", "queries.sql").read_text(encoding="utf-8")
    preamble, *parts = _HEADER.split(text)
    if preamble.strip():
        raise ValueError(f"{package}: text before the first named block")
    blocks: dict[str, str] = {}
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        if name in blocks:
            raise ValueError(f"{package}: block {name!r} occurs twice")
        blocks[name] = body.strip()
    return blocks
