"""DSNs: what is built is understood again, and whatever comes in, no secret comes out."""

import string
import traceback
from urllib.parse import quote

from hypothesis import example, given
from hypothesis import strategies as st

from tollkeeper.config import mask_dsn
from tollkeeper.database.dsn import DEFAULT_PORT, Host, parse_dsn
from tollkeeper.kernel.errors import ConfigurationError

LOWER = string.ascii_lowercase
NAMES = st.text(LOWER + string.digits + "-.", min_size=1, max_size=12).filter(str.isascii)
FOLDERS = NAMES.map(lambda name: f"/{name}")
ADDRESSES = st.ip_addresses(v=6).map(str)
PORTS = st.integers(1, 65_535)
NETWORK = st.builds(lambda name, port: Host(name=name, port=port), NAMES | ADDRESSES, PORTS)
HOSTS = st.builds(lambda name, port: Host(name=name, port=port), NAMES | FOLDERS, PORTS)

# Upper case, which nothing else in these DSNs is: a piece of it is found wherever it turns up.
SECRETS = st.text(string.ascii_uppercase, min_size=4, max_size=8)
STRANGE = st.lists(
    SECRETS | st.text("@:/?#[]%&=,;+ .1\n\\é'\"", min_size=1, max_size=3), min_size=2, max_size=6
).map("".join)


@given(st.lists(NETWORK, min_size=1, max_size=4), st.text(LOWER, max_size=5))
def test_hosts_of_the_authority_are_found_in_order(hosts: list[Host], database: str) -> None:
    listed = ",".join(str(host) for host in hosts)
    dsn = parse_dsn(f"postgresql://ann@{listed}/{database}")

    assert tuple(hosts) == dsn.hosts
    assert f"postgresql://ann@/{database}" == dsn.bare


@given(st.lists(HOSTS, min_size=1, max_size=4))
def test_hosts_of_the_parameters_are_found_in_order(hosts: list[Host]) -> None:
    names = quote(",".join(host.name for host in hosts))
    ports = ",".join(str(host.port) for host in hosts)

    assert tuple(hosts) == parse_dsn(f"postgres://ann@/db?host={names}&port={ports}").hosts


@given(st.lists(HOSTS, min_size=1, max_size=4))
def test_hosts_without_a_port_have_the_usual_one(hosts: list[Host]) -> None:
    names = ",".join(host.name for host in hosts)

    assert {DEFAULT_PORT} == {host.port for host in parse_dsn(f"postgresql:///?host={names}").hosts}


@given(st.text(min_size=1), NAMES)
def test_encoded_password_is_understood_and_masked(password: str, host: str) -> None:
    encoded = quote(password, safe="")
    dsn = parse_dsn(f"postgresql://ann:{encoded}@{host}/db?password={encoded}")

    assert f"postgresql://ann:***@{host}/db?password=***" == dsn.masked
    assert f"postgresql://ann:{encoded}@/db?password={encoded}" == dsn.bare


@given(STRANGE, st.sampled_from(["", ":x", "x:"]))
@example("AAAA@BBBB", "")
@example("1/AAAA", "")
@example("AAAA@h?user=BBBB", "")
@example("1?a=AAAA", "")
@example("1#AAAA", "")
@example("[AAAA]", "")
def test_no_piece_of_a_password_that_was_not_encoded_is_shown(secret: str, user: str) -> None:
    said = everything_said(f"postgresql://{user or 'ann'}:{secret}@host/db?sslmode=disable")

    assert [] == pieces_in(said, secret)


@given(STRANGE)
def test_no_value_of_an_unknown_parameter_is_shown(value: str) -> None:
    said = everything_said(f"postgresql://ann@host/db?passw%6Frd={value}&options={value}")

    assert [] == pieces_in(said, value.partition("&")[0])


@given(st.text())
def test_anything_is_understood_or_refused_in_one_sentence(text: str) -> None:
    for given_text in (text, f"postgresql://{text}"):
        try:
            found = parse_dsn(given_text, name="SOME_DSN")
        except ConfigurationError as error:
            sentence = str(error)
            assert sentence.startswith("SOME_DSN ")
            assert sentence.endswith(".")
            assert "\n" not in sentence
        else:
            assert found.hosts


def everything_said(text: str) -> str:
    """Return all that a log or a screen could show of a DSN that is understood or refused."""
    try:
        dsn = parse_dsn(text)
    except ConfigurationError as error:
        told = [f"{error!r} {error.__context__!r} {mask_dsn(text)}"]
        return "".join(told + traceback.format_exception(error, limit=0))
    return f"{dsn!r} {dsn} {dsn.masked} {mask_dsn(text)}"


def pieces_in(said: str, secret: str) -> list[str]:
    return [
        secret[start : start + 4]
        for start in range(len(secret) - 3)
        if secret[start : start + 4].isupper()
        and secret[start : start + 4].isalpha()
        and secret[start : start + 4] in said
    ]
