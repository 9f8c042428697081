"""A ledger on a small disk of its own, that fills and is cleared again under load.

    python full_disk_process.py DIRECTORY ROUNDS

Mounts a small file system on DIRECTORY in a name space of its own, runs PostgreSQL and a service
there, and lets customers work while the last byte of it is taken and given back. Ends with a JSON
object: what happened. Whatever was answered wrongly ends it with an error.
"""

import asyncio
import ctypes
import json
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import asyncpg
import httpx
from tests.acceptance.conftest import Service, running_service
from tests.conftest import Databases
from tests.customers import NO_RETRIES, Books, Cashier, Customer, rows_of

from tollkeeper.client.credits import CreditsClient
from tollkeeper.database.embedded import EmbeddedServer
from tollkeeper.database.errors import EmbeddedError

NEW_MOUNTS, NEW_USERS = 0x00020000, 0x10000000
PRIVATE, RECURSIVE = 1 << 18, 1 << 14
SIZE = b"mode=755,size=320m"
CUSTOMERS = 6
FUNDS = 5_000
PATIENCE_S = 60.0
REFUSALS = 25
"""So many requests are answered 503, or not at all, while the disk is full."""


def mount_small_disk(directory: Path) -> None:
    """Mount a small file system that nobody else sees."""
    user, group, library = os.getuid(), os.getgid(), ctypes.CDLL(None, use_errno=True)
    if library.unshare(NEW_MOUNTS | (NEW_USERS if user else 0)):
        sys.exit(f"unshare: {os.strerror(ctypes.get_errno())}")
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    library.mount(b"none", b"/", None, RECURSIVE | PRIVATE, None)
    if library.mount(b"tmpfs", os.fsencode(directory), b"tmpfs", 0, SIZE):
        sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")


def fill(directory: Path) -> None:
    """Take what is left of the disk, to the last byte."""
    with (directory / "filler").open("ab", buffering=0) as filler:
        for size in (65_536, 4_096, 1):
            try:
                while filler.write(bytes(size)):
                    pass
            except OSError:
                continue


async def kept_full(server: EmbeddedServer, directory: Path, enough: asyncio.Event) -> int:
    """Keep the disk full, whatever is given back; start a server again that gave up.

    The log goes on to another segment, for which there is no room either.
    """
    starts = 0
    while not enough.is_set():
        await asyncio.to_thread(fill, directory)
        with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            await switch_log(server.dsn("postgres"))
        starts += await started_again(server)
        await asyncio.sleep(0.05)
    return starts


async def switch_log(dsn: str) -> None:
    connection = await asyncpg.connect(dsn, timeout=5)
    try:
        await connection.execute("SELECT pg_logical_emit_message(true, 'full', 'x')")
        await connection.execute("SELECT pg_switch_wal()")
    finally:
        await connection.close(timeout=5)


async def started_again(server: EmbeddedServer) -> int:
    """Start a server that has ended, as `tollkeeper up` does; return how often."""
    if server.is_running():
        return 0
    try:
        await asyncio.to_thread(server.restart)
    except EmbeddedError:
        return 0
    return 1


async def work(
    server: EmbeddedServer, directory: Path, service: Service, *, rounds: int
) -> tuple[Books, int, list[int]]:
    url, api_key = service.url, service.api_key
    books, leaving, starts, statuses = Books(), asyncio.Event(), 0, []
    async with CreditsClient(url, api_key) as patient:
        cashier = Cashier(patient, books)
        await cashier.open("ann", FUNDS)
        clients = [
            CreditsClient(url, api_key, connections=1, backoff=NO_RETRIES) for _ in range(CUSTOMERS)
        ]
        async with asyncio.TaskGroup() as group:
            for number, client in enumerate(clients):
                customer = Customer(client, books, "ann", dice=random.Random(number))
                group.create_task(customer.live(leaving))
            for _ in range(rounds):
                await books.wait_for_answers(50)
                enough = asyncio.Event()
                filling = asyncio.create_task(kept_full(server, directory, enough))
                before = books.unknown
                while books.unknown < before + REFUSALS:
                    await asyncio.sleep(0.05)
                async with httpx.AsyncClient() as browser:
                    statuses.append((await browser.get(f"{url}/health")).status_code)
                enough.set()
                starts += await filling
                (directory / "filler").unlink()
                while not server.is_running():
                    starts += await started_again(server)
                await books.wait_for_answers(50)
            leaving.set()
        for client in clients:
            client.close()
        await cashier.ask_again_for_half_of_what_is_unknown()
        found = await patient.verify()
        assert () == found.faults, found.faults
        assert found.topped_up == found.consumed + found.balance
    return books, starts, statuses


async def settle(books: Books, dsn: str) -> int:
    connection = await asyncpg.connect(dsn)
    try:
        rows = await rows_of(connection)
    finally:
        await connection.close()
    books.settle(rows)
    return len(rows)


@contextmanager
def two_databases(server: EmbeddedServer) -> Iterator[tuple[str, str]]:
    databases = Databases(server)
    with databases.fresh("credits") as credits_dsn, databases.fresh("access") as access_dsn:
        yield credits_dsn, access_dsn


def main(directory: Path, rounds: int) -> None:
    mount_small_disk(directory)
    with (
        EmbeddedServer.start(directory) as server,
        two_databases(server) as (credits_dsn, access_dsn),
        running_service(credits_dsn, access_dsn, directory.parent) as service,
    ):

        async def done() -> dict[str, object]:
            async with asyncio.timeout(PATIENCE_S * rounds):
                books, starts, statuses = await work(server, directory, service, rounds=rounds)
            return {
                "transactions": await settle(books, credits_dsn),
                "answered": books.answered,
                "unknown": books.unknown,
                "starts": starts,
                "alive": statuses,
            }

        said = asyncio.run(done())
    log = (directory / "postgres.log").read_text()
    said["full"] = log.count("No space left on device")
    said["panics"] = log.count("PANIC")
    sys.stdout.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
