"""The clock of a test's database, set forward and back while everything else stays what it is.

The ledger asks the database what time it is, by `clock_timestamp()` and `now()`. In a database
whose search path names another schema before `pg_catalog`, these are that schema's functions: the
server, the ledger's statements and its sessions are unchanged, and read a clock that is set.
"""

from datetime import timedelta

from tollkeeper.database.driver import Connection

SETTABLE = """
CREATE SCHEMA set_clock;
CREATE TABLE set_clock.ahead (by interval NOT NULL);
INSERT INTO set_clock.ahead VALUES ('0');
CREATE FUNCTION set_clock.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
    'SELECT pg_catalog.clock_timestamp() + by FROM set_clock.ahead';
CREATE FUNCTION set_clock.now() RETURNS timestamptz LANGUAGE sql STABLE AS
    'SELECT pg_catalog.now() + by FROM set_clock.ahead';
GRANT USAGE ON SCHEMA set_clock TO PUBLIC;
GRANT SELECT ON set_clock.ahead TO PUBLIC;
DO $$
BEGIN
    EXECUTE format(
        'ALTER DATABASE %I SET search_path = public, set_clock, pg_catalog', current_database());
END
$$;
"""


async def make_settable(owner: Connection) -> None:
    """Let the clock of `owner`'s database be set; sessions that begin later read it."""
    await owner.execute(SETTABLE)


async def set_ahead(owner: Connection, by: timedelta) -> None:
    """Let the database's clock be `by` ahead of the true time, or behind it."""
    await owner.execute("UPDATE set_clock.ahead SET by = $1", by)
