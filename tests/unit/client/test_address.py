"""Where operator commands find a service: as configured, or in a local data directory."""

import json
from pathlib import Path

import pytest

from tollkeeper.client.address import Address
from tollkeeper.config import Settings
from tollkeeper.face import Service, address_of
from tollkeeper.kernel.errors import ConfigurationError


def local(folder: Path, **urls: str) -> Settings:
    """Return settings whose data directory is as a running `up` leaves it."""
    (folder / "up.json").write_text(json.dumps({**urls, "pid": 1}))
    (folder / "dev.key").write_text("tk_dev_1\n")
    return Settings(data=folder)


def test_each_service_of_a_local_up_is_found(tmp_path: Path) -> None:
    settings = local(tmp_path, url="http://a:1", shadow_url="http://a:2")

    assert Address(url="http://a:1", api_key="tk_dev_1") == address_of(settings, Service.CREDITS)
    assert Address(url="http://a:2", api_key="tk_dev_1") == address_of(settings, Service.SHADOW)


def test_a_service_that_does_not_run_there_is_said_so(tmp_path: Path) -> None:
    settings = local(tmp_path, url="http://a:1")

    with pytest.raises(ConfigurationError, match=r"has no shadow_url in its up\.json"):
        address_of(settings, Service.SHADOW)
    with pytest.raises(ConfigurationError, match=r"or set TOLLKEEPER_SHADOW_URL and TOLL"):
        address_of(Settings(data=tmp_path / "nothing"), Service.SHADOW)


def test_url_and_key_belong_together() -> None:
    settings = Settings(url="http://a:1", api_key="tk")

    assert "http://a:1" == address_of(settings, Service.CREDITS).url
    with pytest.raises(ConfigurationError, match=r"^TOLLKEEPER_SHADOW_URL and TOLLKEEPER_API_KEY"):
        address_of(settings, Service.SHADOW)
