"""Reads a DSN just far enough to know its hosts and what must not be shown (pure).

The driver reads it again when it connects; here it is decided what is refused before anything
starts. Invariants: no fault repeats a word of the DSN, because any of them may be a piece of a
password that was not percent-encoded; for the same reason a second `@`, wherever it stands, and a
`#` are refused. `masked` shows the values of known parameters only.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qs, unquote, unquote_plus, urlsplit

from tollkeeper.kernel.errors import ConfigurationError

DEFAULT_PORT: Final = 5432

_SCHEMES: Final = ("postgresql://", "postgres://")
_HIGHEST_PORT: Final = 65_535
_HIDDEN: Final = "***"

_SHOWN: Final = frozenset(
    {
        "application_name", "connect_timeout", "database", "dbname", "host", "port", "service",
        "sslcert", "sslcrl", "sslkey", "sslmode", "sslnegotiation", "sslrootcert",
        "ssl_max_protocol_version", "ssl_min_protocol_version", "target_session_attrs", "user",
    }
)  # fmt: skip
"""Parameters whose values are no secret; of any other one only the name is shown."""

_UNDERSTOOD: Final = (
    "cannot be understood (percent-encode special characters of a password: @ is %40, / is %2F)"
)
_BRACKETED: Final = re.compile(r"\[([^\[\]]+)\](?::(.*))?")
_BLANK_OR_CONTROL: Final = re.compile(r"[\s\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Where a server listens: a name or address, or the folder of its socket."""

    name: str
    port: int = DEFAULT_PORT

    @property
    def is_default(self) -> bool:
        """Whether the DSN names no host: where to look, the driver decides."""
        return not self.name

    @property
    def is_socket(self) -> bool:
        """Whether it is the folder of a socket of this machine."""
        return self.name.startswith("/")

    def __str__(self) -> str:
        if self.is_default:
            return "this machine"
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"


DEFAULT_HOST: Final = Host(name="")
"""The one host of a DSN that names none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dsn:
    """A DSN that was understood. Its `repr` and `str` show no secret."""

    text: str = field(repr=False)
    bare: str = field(repr=False)
    """The same without hosts, for a driver that is told them apart."""
    hosts: tuple[Host, ...]
    masked: str
    """For people: secrets are three stars."""

    def __str__(self) -> str:
        return self.masked


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """The raw text of a DSN, cut into what is shown, what is hidden, and where it leads."""

    scheme: str
    user: str
    password: str
    hosts: str
    rest: str
    """The path, with its slash."""
    query: str


class _Fault(Exception):
    """What is wrong, as the end of a sentence."""


def parse_dsn(text: str, *, name: str = "The database's DSN") -> Dsn:
    """Understand a DSN, or say about `name` in one sentence why not.

    Raises:
        ConfigurationError: the sentence repeats nothing of the DSN, nor does its cause.
    """
    try:
        parts = _cut(text)
        bare = _joined(parts, password=parts.password, hosts="", query=parts.query)
        parameters = _parameters(bare, parts.query)
        hosts = _hosts(parts, parameters)
    except _Fault as error:
        fault = str(error)
    else:
        return Dsn(text=text, bare=bare, hosts=hosts, masked=_masked(parts))
    # Raised outside of the handler, so that it has no context either.
    raise ConfigurationError(problem=f"{name} {fault}.")


def _cut(text: str) -> _Parts:
    scheme = next((each for each in _SCHEMES if text.startswith(each)), None)
    if scheme is None:
        raise _Fault("must begin with postgresql://")
    if _BLANK_OR_CONTROL.search(text):
        raise _Fault("has a space, a line break or another character in it that no DSN has")
    if text.count("@") > 1 or "#" in text:
        raise _Fault(_UNDERSTOOD)
    before_query, _, query = text.removeprefix(scheme).partition("?")
    authority, slash, path = before_query.partition("/")
    login, at, hosts = authority.rpartition("@")
    if "@" in path or "@" in query:
        raise _Fault(_UNDERSTOOD)
    user, colon, password = login.partition(":")
    return _Parts(
        scheme=scheme,
        user=f"{user}{colon}",
        password=password,
        hosts=f"{at}{hosts}",
        rest=f"{slash}{path}",
        query=query,
    )


def _joined(parts: _Parts, *, password: str, hosts: str, query: str) -> str:
    at = "@" if parts.hosts.startswith("@") else ""
    mark = "?" if query else ""
    return f"{parts.scheme}{parts.user}{password}{at}{hosts}{parts.rest}{mark}{query}"


def _parameters(bare: str, query: str) -> dict[str, str]:
    try:
        urlsplit(bare)  # as the driver does
        found = parse_qs(query, strict_parsing=True) if query else {}
    except ValueError:
        raise _Fault(_UNDERSTOOD) from None
    return {key: values[-1] for key, values in found.items()}


def _hosts(parts: _Parts, parameters: dict[str, str]) -> tuple[Host, ...]:
    listed = parts.hosts.removeprefix("@")
    if listed and ("host" in parameters or "port" in parameters):
        raise _Fault("names its hosts in two places")
    if listed:
        return tuple(_host(spec, is_quoted=True) for spec in listed.split(","))
    ports = [_port(each) for each in _split(parameters.get("port", ""))]
    names = _split(parameters.get("host", ""))
    if not names:
        return (DEFAULT_HOST,)
    if len(ports) not in {0, 1, len(names)}:
        raise _Fault("names more or fewer ports than hosts")
    return tuple(_with_ports(names, ports))


def _split(listed: str) -> Sequence[str]:
    return listed.split(",") if listed else ()


def _with_ports(names: Sequence[str], ports: Sequence[int]) -> Iterator[Host]:
    for index, spec in enumerate(names):
        host = _host(spec, is_quoted=False)
        if ports:
            host = Host(name=host.name, port=ports[index] if len(ports) > 1 else ports[0])
        yield host


def _host(spec: str, *, is_quoted: bool) -> Host:
    bracketed = _BRACKETED.fullmatch(spec)
    if bracketed is not None:
        return Host(name=bracketed[1], port=_port(bracketed[2]))
    if spec.startswith("/"):
        return Host(name=spec)
    name, colon, port = spec.partition(":")
    name = unquote(name) if is_quoted else name
    if not name or "[" in name or "]" in name or _BLANK_OR_CONTROL.search(name):
        raise _Fault("has a host that cannot be")
    return Host(name=name, port=_port(port if colon else None))


def _port(text: str | None) -> int:
    if text is None:
        return DEFAULT_PORT
    is_number = text.isascii() and text.isdigit() and len(text) <= 5
    if not is_number or not 1 <= int(text) <= _HIGHEST_PORT:
        raise _Fault("has a port that cannot be (percent-encode special characters of a password)")
    return int(text)


def _masked(parts: _Parts) -> str:
    query = "&".join(_masked_parameter(pair) for pair in parts.query.split("&"))
    return _joined(
        parts,
        password=_HIDDEN if parts.password else "",
        hosts=parts.hosts.removeprefix("@"),
        query=query,
    )


def _masked_parameter(pair: str) -> str:
    key, equals, _ = pair.partition("=")
    return pair if unquote_plus(key) in _SHOWN or not pair else f"{key}{equals}{_HIDDEN}"
