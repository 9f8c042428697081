"""Reads the files in a package's `sql/`: named blocks, so that no SQL stands in Python.

A block begins with a line `-- name --`; comment lines below it state its purpose. The text is sent
as it stands, without its comments: nothing is ever formatted into it. (COPY takes no parameters, so
the driver writes them into the text as literals, and of one in a comment a line break would end the
comment, not the literal.)
"""

import re
from importlib.resources import files

_HEADER = re.compile(r"^-- ([a-z][a-z0-9_]*) --$", re.MULTILINE)
_COMMENT = re.compile(r"^[ ]*--.*\n?", re.MULTILINE)


def load_queries(package: str) -> dict[str, str]:
    """Return the blocks of all `sql/*.sql` files in `package` by name.

    Raises:
        ValueError: text before the first block of a file, or a name that occurs twice.
    """
    blocks: dict[str, str] = {}
    for file in sorted(files(package).joinpath("sql").iterdir(), key=lambda each: each.name):
        preamble, *parts = _HEADER.split(file.read_text(encoding="utf-8"))
        if preamble.strip():
            raise ValueError(f"{package}: text before the first named block of {file.name}")
        for name, body in zip(parts[::2], parts[1::2], strict=True):
            if name in blocks:
                raise ValueError(f"{package}: block {name!r} occurs twice")
            blocks[name] = _COMMENT.sub("", body).strip()
    return blocks
