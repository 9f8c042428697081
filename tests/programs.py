"""Programs of the product that a test kills and starts again."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tests.acceptance.conftest import clean_environment

from tollkeeper.database.embedded import EmbeddedServer
from tollkeeper.database.postmaster import _processes_on

PATIENCE_S = 60.0
"""What is not there again by then does not come back."""


class Program:
    """`tollkeeper ARGUMENTS`, killed and started again."""

    def __init__(self, *arguments: str, environment: dict[str, str], log: Path) -> None:
        self._command = [sys.executable, "-m", "tollkeeper", *arguments]
        # Who is killed while it writes its coverage leaves a broken file.
        self._environment = {
            name: value
            for name, value in clean_environment(environment).items()
            if not name.startswith("COVERAGE")
        }
        self._log = log
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=output, stderr=output
            )

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def end(self) -> int:
        """Ask it to leave; return its exit status."""
        self._process.terminate()
        return self._process.wait(timeout=PATIENCE_S)


def kill_server(server: EmbeddedServer, data: Path) -> None:
    """Kill all processes of a server at once, so that it must recover from its log; start it."""
    for pid in sorted(_processes_on(data)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    server.restart()
