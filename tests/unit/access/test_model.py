from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from tollkeeper.access.api import PROBLEMS
from tollkeeper.access.errors import AccessError, KeyInvalid
from tollkeeper.access.issuer import IssuedKey
from tollkeeper.access.messages import IssuedKeyView, KeyView
from tollkeeper.access.metrics import RESULTS, AccessCollector
from tollkeeper.access.model import (
    ApiKey,
    KeyState,
    check_scopes,
    compose_token,
    hash_token,
    is_token,
    tenant_for,
)
from tollkeeper.app import PROBLEMS as APP_PROBLEMS
from tollkeeper.kernel.ids import TenantId, system_token
from tollkeeper.kernel.principal import Principal, Scope
from tollkeeper.web.auth import AuthenticationTally

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


NOW = datetime(2026, 1, 2, tzinfo=UTC)
SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, KeyState.ACTIVE),
        ({"expires_at": NOW + SECOND}, KeyState.ACTIVE),
        ({"expires_at": NOW}, KeyState.EXPIRED),
        ({"expires_at": NOW - SECOND}, KeyState.EXPIRED),
        ({"expires_at": NOW + SECOND, "replaced_by": UUID(int=2)}, KeyState.GRACE),
        ({"expires_at": NOW, "replaced_by": UUID(int=2)}, KeyState.EXPIRED),
        ({"revoked_at": NOW + SECOND}, KeyState.REVOKED),
        ({"revoked_at": NOW, "expires_at": NOW, "replaced_by": UUID(int=2)}, KeyState.REVOKED),
    ],
)
def test_state_of_a_key(changes: dict[str, object], state: KeyState) -> None:
    assert state == replace(api_key(), **changes).state(NOW)  # type: ignore[arg-type]


def principal(*scopes: str, tenant: str | None = None) -> Principal:
    return api_key(scopes=scopes, tenant=tenant).principal()


ACME, OTHER = TenantId("acme"), TenantId("other")


@pytest.mark.parametrize(
    ("by", "asked", "given"),
    [
        (None, None, None),
        (None, ACME, ACME),
        (principal("admin"), ACME, ACME),
        (principal("admin"), None, None),
        (principal("admin", tenant="acme"), None, ACME),
        (principal("admin", tenant="acme"), ACME, ACME),
    ],
)
def test_tenant_of_a_new_key(
    by: Principal | None, asked: TenantId | None, given: TenantId | None
) -> None:
    assert given == tenant_for(by, asked)


def test_a_bound_key_makes_none_for_another_tenant() -> None:
    with pytest.raises(KeyInvalid) as raised:
        tenant_for(principal("admin", tenant="acme"), OTHER)

    assert "tenant_id" == raised.value.field


def test_nobody_hands_on_more_than_they_have() -> None:
    check_scopes(None, ["admin"])
    check_scopes(principal("admin"), [*Scope])
    check_scopes(principal("credits:read"), ["credits:read"])
    with pytest.raises(KeyInvalid, match="admin, credits:write"):
        check_scopes(principal("credits:read"), ["admin", "credits:read", "credits:write"])


def test_a_token_is_not_shown_by_accident() -> None:
    issued = IssuedKey(key=api_key(), token="tk_live_secret")

    assert "secret" not in repr(issued)
    assert "secret" not in str(issued)


def test_no_view_but_the_one_of_a_new_key_holds_a_secret() -> None:
    assert {"token"} == {*IssuedKeyView.__struct_fields__} - {*KeyView.__struct_fields__}
    assert [] == [name for name in KeyView.__struct_fields__ if "hash" in name or "token" in name]


def test_every_result_is_there_from_the_start() -> None:
    registry = CollectorRegistry()
    AccessCollector(AuthenticationTally(), registry, age_s=lambda: 1.5, held=lambda: 3)

    for result in ("ok", *RESULTS.values()):
        assert 0 == registry.get_sample_value("access_authentications_total", {"result": result})
    assert 1.5 == registry.get_sample_value("access_keys_age_seconds")
    assert 3 == registry.get_sample_value("access_keys")


def test_every_failed_authentication_has_a_result() -> None:
    failures = {error for error, kind in APP_PROBLEMS.items() if kind.status == 401}

    assert failures < set(RESULTS)
