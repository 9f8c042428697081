"""The files of the checkpoints' key pair: the private one for the worker alone, the public for all.

Invariant: a private key is never overwritten, and never on the disk for others to read.
"""

import os
from contextlib import suppress
from pathlib import Path

from tollkeeper.credits.errors import NoteInvalid
from tollkeeper.credits.note import SigningKey, VerifyingKey, make_key, signing_key, verifying_key
from tollkeeper.kernel.errors import ConfigurationError
from tollkeeper.kernel.ids import TokenSource

KEY_NAME = "tollkeeper/credits"
"""Name of a key that is given no other; it is the origin line of its checkpoints."""

PRIVATE_MODE = 0o600
PUBLIC_MODE = 0o644


def public_path(path: Path) -> Path:
    """Return where the public half of a private key is kept."""
    return path.with_suffix(".pub")


def create_key(path: Path, *, name: str, tokens: TokenSource) -> SigningKey:
    """Make a key pair and write it beside each other; nothing is overwritten.

    Raises:
        ConfigurationError: the name cannot be, or a file is there or cannot be written.
    """
    if public_path(path) == path:
        raise ConfigurationError(problem=f"{path} would be the public key: name the private one.")
    try:
        key = make_key(name, tokens())
        _create(path, key.text, PRIVATE_MODE)
        _create(public_path(path), key.verifying.text, PUBLIC_MODE)
    except NoteInvalid as error:
        raise ConfigurationError(problem=f"{error}.") from error
    except FileExistsError as error:
        raise ConfigurationError(
            problem=f"{error.filename2} is there already: a key that signed is never overwritten."
        ) from error
    except OSError as error:
        raise ConfigurationError(problem=f"{path} cannot be written: {error.strerror}.") from error
    return key


def ensure_key(path: Path, *, tokens: TokenSource) -> SigningKey:
    """Return the key in `path`, made if there is none; its public half is put beside it.

    Raises:
        ConfigurationError: a file cannot be read or written, or is no key.
    """
    if not path.exists():
        public_path(path).unlink(missing_ok=True)  # of a private key that is gone
        return create_key(path, name=KEY_NAME, tokens=tokens)
    key = read_signing_key(path)
    with suppress(FileExistsError):
        _create(public_path(path), key.verifying.text, PUBLIC_MODE)
    return key


def read_signing_key(path: Path) -> SigningKey:
    """Return the private key in `path`.

    Raises:
        ConfigurationError: the file cannot be read, or is no private key.
    """
    try:
        return signing_key(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(problem=f"{path} cannot be read: {error}.") from error
    except NoteInvalid as error:
        # The file's text is never quoted.
        raise ConfigurationError(problem=f"{path}: {error}.") from error


def read_verifying_keys(text: str) -> tuple[VerifyingKey, ...]:
    """Return the public keys that `text` is, or that stand in the file of this name, one a line.

    Raises:
        ConfigurationError: there is none, or one is no key.
    """
    path = Path(text)
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else [text]
        keys = tuple(verifying_key(line) for line in lines if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(problem=f"{path} cannot be read: {error}.") from error
    except NoteInvalid as error:
        raise ConfigurationError(
            problem=f"{text!r} is neither a public key nor a file with some: {error}."
        ) from error
    if not keys:
        raise ConfigurationError(problem=f"{path} holds no public key.")
    return keys


def _create(path: Path, text: str, mode: int) -> None:
    """Write a file whole or not at all; one that is there stays as it is."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, mode)
            file.write(f"{text}\n")
            file.flush()
            os.fsync(descriptor)
        os.link(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
