"""The product as others meet it: its own processes, talked to over HTTP and the command line."""

import asyncio
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from unittest import mock
from urllib.error import URLError
from urllib.request import urlopen

import asyncpg
import httpx
import pytest
from tests.conftest import Databases
from tests.nursery import Program, start

from tollkeeper.cli import main
from tollkeeper.kernel.ids import TenantId
from tollkeeper.wiring import ensure_development_key, owners_issuer

READY_S = 20.0
"""A service that is not ready by then does not start."""


@dataclass(frozen=True)
class Finished:
    """A command line that has ended."""

    code: int
    out: str
    err: str

    def json(self) -> dict[str, object]:
        """Return standard output as the one JSON document it must be."""
        document: dict[str, object] = json.loads(self.out)
        return document

    def problem(self) -> dict[str, object]:
        """Return standard error as the one JSON problem it must be."""
        document: dict[str, object] = json.loads(self.err)
        return document


@dataclass(frozen=True)
class Service:
    """A running credits service, and the command line that is pointed at it."""

    url: str
    api_key: str
    credits_dsn: str
    process: Program

    @property
    def environment(self) -> dict[str, str]:
        """Return what points the command line here."""
        return {"TOLLKEEPER_URL": self.url, "TOLLKEEPER_API_KEY": self.api_key}

    def run(self, *arguments: str, environment: Mapping[str, str] | None = None) -> Finished:
        """Run `tollkeeper ARGUMENTS` to its end, in this process."""
        return inside(*arguments, environment={**self.environment, **(environment or {})})


@dataclass(frozen=True)
class ShadowService:
    """A running shadow service, and the command line that is pointed at it."""

    url: str
    api_key: str
    shadow_dsn: str
    process: Program

    @property
    def environment(self) -> dict[str, str]:
        """Return what points the command line here."""
        return {"TOLLKEEPER_SHADOW_URL": self.url, "TOLLKEEPER_API_KEY": self.api_key}

    def run(self, *arguments: str, environment: Mapping[str, str] | None = None) -> Finished:
        """Run `tollkeeper ARGUMENTS` to its end, in this process."""
        return inside(*arguments, environment={**self.environment, **(environment or {})})

    def client(self, token: str | None = None) -> httpx.Client:
        """Return a client with a key: the administrator's, or another."""
        headers = {"Authorization": f"Bearer {token or self.api_key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=20)


def tollkeeper(*arguments: str, environment: Mapping[str, str] | None = None) -> Finished:
    """Run `tollkeeper ARGUMENTS` to its end, with no settings but these."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = start(
            *("-m", "tollkeeper", *arguments),
            environment=clean_environment(environment or {}),
            stdout=out,
            stderr=err,
        )
        try:
            code = process.wait(timeout=120)
        except BaseException:
            process.kill()
            raise
        return Finished(code, *(_read(file) for file in (out, err)))


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


def inside(*arguments: str, environment: Mapping[str, str]) -> Finished:
    """Run `tollkeeper ARGUMENTS` as its program does, in this process: starts take most of it."""
    with ThreadPoolExecutor(max_workers=1) as thread:  # the caller may have an event loop already
        return thread.submit(_run_main, arguments, clean_environment(environment)).result()


def _run_main(arguments: Sequence[str], environment: Mapping[str, str]) -> Finished:
    out, err = _stream(), _stream()
    with (
        mock.patch.dict(os.environ, environment, clear=True),
        mock.patch.object(sys, "argv", ["tollkeeper", *arguments]),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    code = ended.value.code
    return Finished(code if isinstance(code, int) else 0, _said(out), _said(err))


def _stream() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="", write_through=True)


def _said(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read().replace("\r\n", "\n")  # as `subprocess` reads text


def clean_environment(more: Mapping[str, str]) -> dict[str, str]:
    """Return this environment without its own settings of Tollkeeper, and with others."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TOLLKEEPER_")}
    return {**kept, "COLUMNS": "200", **more}


def free_port() -> int:
    """Return a TCP port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def running_service(
    credits_dsn: str, access_dsn: str, folder: Path, *, settings: Mapping[str, str] | None = None
) -> Iterator[Service]:
    """Run `tollkeeper serve credits` on a free port until the block ends."""
    api_key = create_key(access_dsn, folder / "dev.key")
    dsns = {"TOLLKEEPER_CREDITS_DSN": credits_dsn, "TOLLKEEPER_ACCESS_DSN": access_dsn}
    with serving("credits", {**dsns, **(settings or {})}, folder / "service.log") as (url, process):
        yield Service(url, api_key, credits_dsn, process)


@contextmanager
def running_shadow(
    shadow_dsn: str, access_dsn: str, folder: Path, *, settings: Mapping[str, str] | None = None
) -> Iterator[ShadowService]:
    """Run `tollkeeper serve shadow` on a free port until the block ends."""
    api_key = create_key(access_dsn, folder / "dev.key")
    dsns = {"TOLLKEEPER_SHADOW_DSN": shadow_dsn, "TOLLKEEPER_ACCESS_DSN": access_dsn}
    with serving("shadow", {**dsns, **(settings or {})}, folder / "service.log") as (url, process):
        yield ShadowService(url, api_key, shadow_dsn, process)


@contextmanager
def serving(name: str, settings: Mapping[str, str], log: Path) -> Iterator[tuple[str, Program]]:
    """Run a service on a free port until the block ends; lend its URL and its process."""
    port = free_port()
    with log.open("wb") as output:
        process = start(
            *("-m", "tollkeeper", "serve", name, "--port", str(port)),
            environment=clean_environment({"TOLLKEEPER_DRAIN_GRACE_S": "0", **settings}),
            stdout=output,
            stderr=output,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process, log)
        yield url, process
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def wait_until_ready(url: str, process: Program, log: Path) -> None:
    """Poll readiness until it is there, or say what the service said."""
    deadline_s = time.monotonic() + READY_S
    while time.monotonic() < deadline_s and process.poll() is None:
        try:
            with urlopen(f"{url}/health/ready", timeout=2):
                return
        except (URLError, OSError):
            time.sleep(0.05)
    raise AssertionError(f"the service is not ready:\n{log.read_text()}")


def create_key(access_dsn: str, path: Path) -> str:
    """Make an administrator's key; a service that starts later knows it at once."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        work = thread.submit(lambda: asyncio.run(ensure_development_key(access_dsn, path)))
        return work.result()


def create_keys(
    access_dsn: str, wanted: Mapping[str, tuple[Sequence[str], str | None]]
) -> dict[str, str]:
    """Make keys by name, of scopes and a tenant; a service that starts later knows them at once."""

    async def work() -> dict[str, str]:
        async with owners_issuer(access_dsn) as issuer:
            return {
                name: (
                    await issuer.create_key(
                        name, scopes=scopes, tenant_id=None if tenant is None else TenantId(tenant)
                    )
                ).token
                for name, (scopes, tenant) in wanted.items()
            }

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(lambda: asyncio.run(work())).result()


@pytest.fixture(scope="module")
def service(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A credits service on databases of this module's own."""
    with (
        databases.fresh("credits") as credits_dsn,
        databases.fresh("access") as access_dsn,
        running_service(credits_dsn, access_dsn, tmp_path_factory.mktemp("service")) as service,
    ):
        yield service


def execute(dsn: str, script: str) -> None:
    """Run SQL as the owner of a database."""

    async def work() -> None:
        connection = await asyncpg.connect(dsn)
        try:
            await connection.execute(script)
        finally:
            await connection.close()

    asyncio.run(work())
