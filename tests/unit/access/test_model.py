from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.access.api import PROBLEMS
from tollkeeper.access.errors import AccessError, KeyInvalid
from tollkeeper.access.model import ApiKey, compose_token, hash_token, is_token
from tollkeeper.kernel.ids import TenantId, system_token
from tollkeeper.kernel.principal import Scope

SECRETS = st.binary(min_size=32, max_size=32)


def api_key(
    name: str = "billing", *, scopes: tuple[str, ...] = ("credits:read",), tenant: str | None = None
) -> ApiKey:
    return ApiKey(
        key_id=UUID(int=1),
        name=name,
        token_hash=bytes(32),
        scopes=scopes,
        tenant_id=None if tenant is None else TenantId(tenant),
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


@given(SECRETS)
def test_composed_token_is_a_token(secret: bytes) -> None:
    token = compose_token("live", secret)

    assert is_token(token)
    assert token.startswith("tk_live_")
    assert 80 == len(token)


@given(SECRETS, st.integers(0, 79), st.characters(codec="utf-8"))
def test_one_changed_character_is_noticed(secret: bytes, place: int, character: str) -> None:
    token = compose_token("live", secret)
    mistyped = token[:place] + character + token[place + 1 :]

    assert is_token(mistyped) == (mistyped == token)


@pytest.mark.parametrize("text", ["", "tk_dev_", "tk_test_" + "0" * 72, "Bearer x"])
def test_other_text_is_no_token(text: str) -> None:
    assert not is_token(text)


@given(st.text(st.characters()))
def test_any_text_has_a_hash(text: str) -> None:
    assert 32 == len(hash_token(text))


def test_system_token_is_fresh() -> None:
    assert 100 == len({system_token() for _ in range(100)})


def test_scopes_do_not_imply_each_other() -> None:
    principal = api_key(scopes=("credits:write",)).principal()

    assert frozenset({"credits:write"}) == principal.scopes


def test_admin_implies_every_scope() -> None:
    principal = api_key(scopes=("admin", "later:scope"), tenant="acme").principal()

    assert {*Scope, "later:scope"} == principal.scopes
    assert "acme" == principal.tenant_id


@pytest.mark.parametrize("name", ["", "x" * 101, "a\0b", "\ud800"])
def test_name_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(KeyInvalid) as raised:
        api_key(name)

    assert "name" == raised.value.field


@pytest.mark.parametrize("tenant", ["", "é" * 65, "a\0b", "\udfff"])
def test_tenant_that_cannot_be_is_refused(tenant: str) -> None:
    with pytest.raises(KeyInvalid) as raised:
        api_key(tenant=tenant)

    assert "tenant_id" == raised.value.field


def test_key_without_scopes_is_refused() -> None:
    with pytest.raises(KeyInvalid) as raised:
        api_key(scopes=())

    assert "scopes" == raised.value.field


def test_every_access_error_has_a_problem() -> None:
    assert set(AccessError.__subclasses__()) == set(PROBLEMS)
