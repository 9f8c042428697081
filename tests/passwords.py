"""A role that needs a password: everyone else is let into the servers of tests without one."""

import socket
from pathlib import Path
from urllib.parse import quote

import asyncpg

ROLE = "needs_password"
PASSWORD = "correct horse: battery/staple@9"


async def require_password(owner_dsn: str) -> str:
    """Make the role on the server of this DSN, and have its password asked; return its DSN.

    Doing it twice does no harm, and no other role is concerned.
    """
    connection = await asyncpg.connect(owner_dsn)
    try:
        if _has_rule_now(Path(await connection.fetchval("SHOW hba_file"))):
            await connection.execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'")
            await connection.execute("SELECT pg_reload_conf()")
    finally:
        await connection.close()
    dsn = owner_dsn.replace("tollkeeper@", f"{ROLE}:{quote(PASSWORD, safe='')}@")
    await _wait_until_asked(owner_dsn.replace("tollkeeper@", f"{ROLE}:wrong@"))
    return dsn


def _has_rule_now(rules: Path) -> bool:
    """Put the role's rule first, where it wins; False if it is there already."""
    line = f"local all {ROLE} scram-sha-256\n"
    known = rules.read_text()
    if known.startswith(line):
        return False
    rules.write_text(line + known)
    return True


async def _wait_until_asked(dsn: str) -> None:
    """The server reads its rules some moments after it was told to."""
    for _ in range(1_000):
        try:
            connection = await asyncpg.connect(dsn)
        except asyncpg.InvalidPasswordError:
            return
        await connection.close()
    raise AssertionError("the server asks for no password")


def unknown_host() -> str:
    """Return a name that no resolver knows; without a network it must not ask one."""
    try:
        socket.getaddrinfo("nowhere.invalid", None)
    except socket.gaierror as error:
        if error.errno != socket.EAI_AGAIN:
            return "nowhere.invalid"
    return "nowhere..invalid"  # an empty label
