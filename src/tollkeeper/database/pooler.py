"""What may stand between us and PostgreSQL. Settings name it; it needs no driver to be known."""

from enum import StrEnum


class Pooler(StrEnum):
    """A connection pooler in front of the server."""

    NONE = "none"
    """None, or one that lends whole sessions."""
    PGBOUNCER = "pgbouncer"
    """PgBouncer with `pool_mode = transaction`: a session is nobody's own."""
