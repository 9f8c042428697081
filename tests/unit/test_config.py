import pytest

from tollkeeper.config import Settings, check_session, mask_dsn, read_settings
from tollkeeper.database.pooler import Pooler
from tollkeeper.kernel.errors import ConfigurationError


def test_fewest_connections_must_not_exceed_most() -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_settings({"TOLLKEEPER_POOL_MIN": "9", "TOLLKEEPER_POOL_SIZE": "8"})

    assert "TOLLKEEPER_POOL_MIN must not exceed TOLLKEEPER_POOL_SIZE." == str(caught.value)


def test_fewest_connections_may_be_none_or_as_many_as_most() -> None:
    for least in (0, 8):
        assert least == Settings(pool_min=least, pool_size=8).pool_min


def test_pooler_is_read_by_its_name() -> None:
    assert Pooler.NONE is read_settings({}).pooler
    assert Pooler.PGBOUNCER is read_settings({"TOLLKEEPER_POOLER": "pgbouncer"}).pooler


def test_unknown_pooler_is_refused() -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_settings({"TOLLKEEPER_POOLER": "pgpool"})

    assert "TOLLKEEPER_POOLER must be none or pgbouncer, not 'pgpool'." == str(caught.value)


def test_quarter_that_has_just_ended_is_never_archived() -> None:
    assert 0 == read_settings({}).archive_after_quarters
    assert 2 == Settings(archive_after_quarters=2).archive_after_quarters
    with pytest.raises(ConfigurationError, match="or at least 2"):
        read_settings({"TOLLKEEPER_ARCHIVE_AFTER_QUARTERS": "1"})


def test_what_needs_a_session_is_refused_behind_a_pooler_of_units_of_work() -> None:
    check_session(Settings(), "The worker")
    with pytest.raises(ConfigurationError) as caught:
        check_session(Settings(pooler=Pooler.PGBOUNCER), "The worker")

    assert (
        "The worker holds locks of a session: give it a DSN that leads to PostgreSQL itself, and "
        "TOLLKEEPER_POOLER=none." == str(caught.value)
    )


def test_dsn_of_several_hosts_is_accepted_and_its_password_is_not_shown() -> None:
    settings = Settings(credits_dsn="postgresql://u:hidden@h1:5432,[::1]:5433/credits")

    assert "postgresql://u:***@h1:5432,[::1]:5433/credits" == settings.masked()["credits_dsn"]


def test_dsn_that_cannot_be_understood_is_named_by_its_variable_and_not_shown() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings(access_dsn="postgresql://u:hid/den@h/d")

    assert str(caught.value).startswith("TOLLKEEPER_ACCESS_DSN cannot be understood")
    assert "***" == mask_dsn("postgresql://u:hid/den@h/d")
