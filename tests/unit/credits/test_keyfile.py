"""The files of a key pair: who may read them, and that no key is ever lost."""

import stat
from pathlib import Path

import pytest

from tollkeeper.credits.keyfile import (
    KEY_NAME,
    create_key,
    ensure_key,
    public_path,
    read_signing_key,
    read_verifying_keys,
)
from tollkeeper.kernel.errors import ConfigurationError
from tollkeeper.kernel.ids import system_token


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.key"


def test_a_made_pair_is_there_to_be_read(path: Path) -> None:
    key = create_key(path, name="example.com/log", tokens=system_token)

    assert key == read_signing_key(path)
    assert (key.verifying,) == read_verifying_keys(str(public_path(path)))
    assert (key.verifying,) == read_verifying_keys(key.verifying.text)
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert {"checkpoint.key", "checkpoint.pub"} == {each.name for each in path.parent.iterdir()}


@pytest.mark.parametrize("name", ["checkpoint.key", "checkpoint.pub"])
def test_a_file_that_is_there_is_never_overwritten(path: Path, name: str) -> None:
    (path.parent / name).write_text("mine")
    with pytest.raises(ConfigurationError, match=rf"{name} is there already"):
        create_key(path, name=KEY_NAME, tokens=system_token)

    assert "mine" == (path.parent / name).read_text()


def test_a_key_is_made_once_and_kept(path: Path) -> None:
    key = ensure_key(path, tokens=system_token)
    public_path(path).unlink()

    assert key == ensure_key(path, tokens=system_token)
    assert (key.verifying,) == read_verifying_keys(str(public_path(path)))


def test_the_public_key_of_a_private_one_that_is_gone_makes_room(path: Path) -> None:
    lost = ensure_key(path, tokens=system_token)
    path.unlink()
    key = ensure_key(path, tokens=system_token)

    assert key != lost
    assert (key.verifying,) == read_verifying_keys(str(public_path(path)))


def test_several_public_keys_may_stand_in_a_file(tmp_path: Path) -> None:
    keys = [
        create_key(tmp_path / f"{name}.key", name=name, tokens=system_token).verifying
        for name in ("old", "new")
    ]
    (tmp_path / "all").write_text("\n\n".join(key.text for key in keys))

    assert tuple(keys) == read_verifying_keys(str(tmp_path / "all"))


def test_what_is_no_key_is_said_without_showing_it(path: Path) -> None:
    path.write_text("PRIVATE+KEY+name+00000000+c2VjcmV0")
    with pytest.raises(ConfigurationError) as refused:
        read_signing_key(path)

    assert "c2VjcmV0" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "no key", "/nowhere/key.pub"])
def test_what_is_no_public_key_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        read_verifying_keys(text)


def test_files_that_cannot_be_read_or_written_are_said(tmp_path: Path) -> None:
    (tmp_path / "empty.pub").write_text("\n")
    (tmp_path / "binary.pub").write_bytes(b"\xff\xfe")
    for name in ("empty.pub", "binary.pub"):
        with pytest.raises(ConfigurationError):
            read_verifying_keys(str(tmp_path / name))
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_signing_key(tmp_path / "missing")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        create_key(tmp_path / "missing" / "a.key", name=KEY_NAME, tokens=system_token)
    with pytest.raises(ConfigurationError, match="would be the public key"):
        create_key(tmp_path / "a.pub", name=KEY_NAME, tokens=system_token)
    with pytest.raises(ConfigurationError, match="name of a key"):
        create_key(tmp_path / "a.key", name="a b", tokens=system_token)
