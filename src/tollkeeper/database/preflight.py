"""Looks once, when a process starts, whether its databases could ever be reached as configured.

What may come up later (a server that is not there yet, or busy; a schema, a role) is no fault:
processes start in any order. What only a change can mend ends the process with one sentence.
"""

import asyncio
from collections.abc import Mapping
from typing import Final

from tollkeeper.database.connect import close_gently, connector
from tollkeeper.database.dsn import Dsn, Host, parse_dsn
from tollkeeper.database.errors import DatabaseError, DatabaseMisconfigured
from tollkeeper.database.pooler import Pooler
from tollkeeper.kernel.errors import ConfigurationError

TIMEOUT_S: Final = 2.0
"""For all databases together; who has not answered by then may do so later."""

_SETTINGS: Final = {"statement_timeout": "2s"}
"""A setting of a session, so that a pooler shows that it would refuse those of the pools."""


async def check(
    dsns: Mapping[str, str], *, pooler: Pooler = Pooler.NONE, timeout_s: float = TIMEOUT_S
) -> None:
    """Connect once to every host of every DSN (by the name of its variable), all at once.

    Raises:
        ConfigurationError: no host of a DSN will ever let us in; names the variable.
    """
    known = {name: parse_dsn(dsn, name=name) for name, dsn in dsns.items()}
    faults = await asyncio.gather(
        *(_fault_of(dsn, pooler=pooler, timeout_s=timeout_s) for dsn in known.values())
    )
    for name, fault in zip(known, faults, strict=True):
        if fault is not None:
            raise ConfigurationError(problem=f"{name}: {fault.reason}") from fault


async def _fault_of(dsn: Dsn, *, pooler: Pooler, timeout_s: float) -> DatabaseMisconfigured | None:
    """Return what is wrong with the first host, if something is with each of them."""
    faults = await asyncio.gather(
        *(_try(dsn, host, pooler=pooler, timeout_s=timeout_s) for host in dsn.hosts)
    )
    return faults[0] if all(faults) else None


async def _try(
    dsn: Dsn, host: Host, *, pooler: Pooler, timeout_s: float
) -> DatabaseMisconfigured | None:
    connect = connector(
        dsn, settings=_SETTINGS, host=host, pooler=pooler, connect_timeout_s=timeout_s
    )
    try:
        connection = await connect()
    except DatabaseMisconfigured as error:
        return error
    except DatabaseError:
        return None  # whoever needs it says so, and tries again
    await close_gently(connection, timeout_s)
    return None
