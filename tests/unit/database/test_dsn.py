import pytest

from tollkeeper.database.dsn import DEFAULT_HOST, Host, parse_dsn
from tollkeeper.kernel.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("postgresql://db/credits", (Host(name="db"),)),
        ("postgresql://u:p@db1:5433,db2/credits", (Host(name="db1", port=5433), Host(name="db2"))),
        (
            "postgres://u@[::1]:6000,[fe80::2]/c",
            (Host(name="::1", port=6000), Host(name="fe80::2")),
        ),
        ("postgresql://u@%2Frun%2Fpg:5433/c", (Host(name="/run/pg", port=5433),)),
        ("postgresql:///c?host=/run/a,/run/b", (Host(name="/run/a"), Host(name="/run/b"))),
        ("postgresql:///c?host=a,b&port=1,2", (Host(name="a", port=1), Host(name="b", port=2))),
        ("postgresql:///c?host=a,b&port=7", (Host(name="a", port=7), Host(name="b", port=7))),
        ("postgresql:///c", (DEFAULT_HOST,)),
        ("postgresql://u:p@/c?port=5433", (DEFAULT_HOST,)),
    ],
)
def test_hosts_are_found(text: str, hosts: tuple[Host, ...]) -> None:
    assert hosts == parse_dsn(text).hosts


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        (Host(name="db", port=5433), "db:5433"),
        (Host(name="::1"), "[::1]:5432"),
        (Host(name="/run/pg"), "/run/pg:5432"),
        (DEFAULT_HOST, "this machine"),
    ],
)
def test_host_is_shown_as_people_write_it(host: Host, shown: str) -> None:
    assert shown == str(host)
    assert host.is_default == (host is DEFAULT_HOST)
    assert host.is_socket == host.name.startswith("/")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "must begin with postgresql://"),
        ("mysql://u@h/d", "must begin with postgresql://"),
        ("host=db user=ann", "must begin with postgresql://"),
        ("postgresql://u@h/d\n", "has a space"),
        ("postgresql://u:a b@h/d", "has a space"),
        ("postgresql://u:a@b@h/d", "cannot be understood"),
        ("postgresql://u:a/b@h/d", "cannot be understood"),
        ("postgresql://u:a#b@h/d", "cannot be understood"),
        ("postgresql://u:[b@h/d", "cannot be understood"),
        ("postgresql://u@h/d?nothing", "cannot be understood"),
        ("postgresql://u:12?x=y@h/d", "cannot be understood"),
        ("postgresql://u@h:0/d", "has a port that cannot be"),
        ("postgresql://u@h:65536/d", "has a port that cannot be"),
        ("postgresql://u@h:²/d", "has a port that cannot be"),
        ("postgresql://u@h:/d", "has a port that cannot be"),
        ("postgresql://u@a,,b/d", "has a host that cannot be"),
        ("postgresql://u@[::1/d", "has a host that cannot be"),
        ("postgresql:///d?host=a,b,c&port=1,2", "names more or fewer ports than hosts"),
    ],
)
def test_what_cannot_be_understood_is_refused(text: str, fault: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_dsn(text, name="TOLLKEEPER_CREDITS_DSN")

    assert str(caught.value).startswith(f"TOLLKEEPER_CREDITS_DSN {fault}")


def test_only_values_of_known_parameters_are_shown() -> None:
    dsn = parse_dsn("postgresql://u:p@h/d?sslmode=require&sslpassword=p&passfile=/p&x=p&user=u")

    assert (
        "postgresql://u:***@h/d?sslmode=require&sslpassword=***&passfile=***&x=***&user=u"
        == dsn.masked
    )
