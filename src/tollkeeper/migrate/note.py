"""The notes that rollback leaves on databases, and the names it gives them (pure).

A database's comment is the only memory that is changed in the same unit of work as its name and
its being open: whoever comes after a kill reads there what was going on.
"""

import hashlib
from datetime import datetime
from enum import StrEnum
from typing import assert_never

import msgspec

PREFIX = "tollkeeper: "
"""Every note begins with it; no comment of somebody else's does."""

NAME_LIMIT_BYTES = 63
"""The longest name that PostgreSQL keeps whole."""


class State(StrEnum):
    """What a database with a note is."""

    CLOSING = "closing"
    """The live one, closed for the moment of the swap."""
    KEPT = "kept"
    """The one that was live before a rollback: what an undo puts back."""
    UNDONE = "undone"
    """The one that an undo took away."""


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a database that carries it."""

    state: State
    database: str
    """The name under which it is live, or was."""
    service: str
    """Which of Tollkeeper's databases it is: what commands call it."""
    backup: str
    at: datetime
    comment: str | None = None
    """What it carried before."""


def written(note: Note) -> str:
    """Return the comment: a sentence for people, then the note, which is one line."""
    match note.state:
        case State.CLOSING:
            said = (
                f"closed for a rollback; if none is running, "
                f"`{reopening_command(note.service)}` opens it"
            )
        case State.KEPT:
            said = f"what {note.database} was before it was rolled back to {note.backup}"
        case State.UNDONE:
            said = f"what {note.database} was before a rollback to {note.backup} was undone"
        case _:
            assert_never(note.state)
    return f"{PREFIX}{said}\n{msgspec.json.encode(note).decode()}"


def understood(comment: str | None) -> Note | None:
    """Return the note that a comment is; None: it is somebody's comment."""
    if comment is None or not comment.startswith(PREFIX):
        return None
    try:
        return msgspec.json.decode(comment.rpartition("\n")[2], type=Note)
    except msgspec.DecodeError:
        return None


def reopening_command(service: str) -> str:
    """Return what opens a database that a killed rollback has left closed."""
    return f"tollkeeper migrate rollback {service} --reopen"


def aside_name(database: str, word: str, tag: str) -> str:
    """Return a name beside a database's, which is cut where both would be too long."""
    end = f"_{word}_{tag}"
    room = NAME_LIMIT_BYTES - len(end)
    return database.encode()[:room].decode(errors="ignore") + end


def scratch_prefix(database: str) -> str:
    """Return how the names of all scratch databases of one database begin."""
    return f"tollkeeper_scratch_{hashlib.sha256(database.encode()).hexdigest()[:12]}_"


def scratch_name(database: str, tag: str) -> str:
    """Return the name of a scratch database."""
    return f"{scratch_prefix(database)}{tag}"
