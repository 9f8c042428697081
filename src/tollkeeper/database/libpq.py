"""What PostgreSQL's own programs are told of a server: by their environment, never as arguments.

Pure: the caller hands in the environment that it has. Arguments are seen by everybody on a machine;
a password in them would be, too.
"""

from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tollkeeper.database.dsn import Dsn, Host

_VARIABLES: Final[Mapping[str, str]] = {
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "channel_binding": "PGCHANNELBINDING",
    "gssencmode": "PGGSSENCMODE",
    "krbsrvname": "PGKRBSRVNAME",
    "passfile": "PGPASSFILE",
    "password": "PGPASSWORD",
    "require_auth": "PGREQUIREAUTH",
    "requirepeer": "PGREQUIREPEER",
    "sslcert": "PGSSLCERT",
    "sslcrl": "PGSSLCRL",
    "sslkey": "PGSSLKEY",
    "sslmode": "PGSSLMODE",
    "sslnegotiation": "PGSSLNEGOTIATION",
    "sslrootcert": "PGSSLROOTCERT",
    "ssl_max_protocol_version": "PGSSLMAXPROTOCOLVERSION",
    "ssl_min_protocol_version": "PGSSLMINPROTOCOLVERSION",
}
"""Parameters of a DSN that hold for the programs as well, and the variable of each."""

_OURS: Final = frozenset(
    {
        "PGAPPNAME", "PGDATABASE", "PGHOST", "PGHOSTADDR", "PGLOADBALANCEHOSTS", "PGOPTIONS",
        "PGPORT", "PGSERVICE", "PGTARGETSESSIONATTRS", "PGUSER",
    }
)  # fmt: skip
"""Variables that would lead a program elsewhere than the DSN leads us."""


_DATABASES: Final = frozenset({"database", "dbname"})


def client_environment(
    dsn: Dsn, *, host: Host, user: str, database: str, inherited: Mapping[str, str]
) -> dict[str, str]:
    """Return the environment in which a program meets `database` at `host` as `user`."""
    kept = {name: value for name, value in inherited.items() if name not in _OURS}
    said = {_VARIABLES[key]: value for key, value in _parameters(dsn).items() if key in _VARIABLES}
    place = {} if host.is_default else {"PGHOST": host.name, "PGPORT": str(host.port)}
    # Their messages are read: for what a dump is at, and for the reason when it fails.
    return {**kept, **said, **place, "PGUSER": user, "PGDATABASE": database, "LC_ALL": "C"}


def database_of(dsn: Dsn, inherited: Mapping[str, str]) -> str | None:
    """Return the database that a DSN names; None: none, so it is called as the user is."""
    path = urlsplit(dsn.bare).path.removeprefix("/")
    parameters = _parameters(dsn)
    named = unquote(path) or parameters.get("dbname") or parameters.get("database")
    return named or inherited.get("PGDATABASE")


def with_database(dsn: Dsn, database: str) -> str:
    """Return a DSN like another that names this database."""
    parts = urlsplit(dsn.text)
    pairs = [each for each in parts.query.split("&") if each.partition("=")[0] not in _DATABASES]
    query = "&".join(pairs)
    place = f"{parts.scheme}://{parts.netloc}/{quote(database, safe='')}"
    return f"{place}?{query}" if query else place


def secrets_of(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return what of a program's environment must never be shown."""
    return tuple(value for name, value in environment.items() if name == "PGPASSWORD" and value)


def _parameters(dsn: Dsn) -> dict[str, str]:
    parts = urlsplit(dsn.bare)
    found = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    if parts.password:
        found["password"] = unquote(parts.password)
    return found
