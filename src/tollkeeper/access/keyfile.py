"""The key of a local `tollkeeper up`: made once, kept in a file that only its owner reads."""

import asyncio
import os
import tempfile
from pathlib import Path

from tollkeeper.access.issuer import KeyIssuer
from tollkeeper.access.model import is_token
from tollkeeper.kernel.errors import ConfigurationError
from tollkeeper.kernel.principal import Scope

DEVELOPMENT_KEY_NAME = "development"


async def ensure_development_key(issuer: KeyIssuer, path: Path) -> str:
    """Return the key in `path` if it is still valid; otherwise make one and put it there.

    Raises:
        ConfigurationError: the file cannot be read or written.
        DatabaseError: the database is away.
    """
    token = await asyncio.to_thread(_read_token, path)
    if token is not None and await issuer.is_valid(token):
        return token
    issued = await issuer.create_key(DEVELOPMENT_KEY_NAME, scopes=(Scope.ADMIN,), environment="dev")
    await asyncio.to_thread(_write_secret, path, issued.token)
    return issued.token


def _read_token(path: Path) -> str | None:
    """Return the key in a file, whose mode is put right; None if there is no whole key in it."""
    try:
        token = path.read_bytes().decode("ascii", errors="replace").strip()
        path.chmod(0o600)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(problem=f"{path} cannot be read: {error.strerror}.") from error
    return token if is_token(token) else None


def _write_secret(path: Path, token: str) -> None:
    """Put a file in place whole or not at all, for its owner's eyes only."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(f"{token}\n")
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigurationError(problem=f"{path} cannot be written: {error.strerror}.") from error
