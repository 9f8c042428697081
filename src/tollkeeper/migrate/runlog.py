"""The log of one run: a file of JSON lines, written as things happen.

Every line has the time, the id of the run and the event. Statements are without values, and card
numbers and the like are masked: the file may be shown to others. It can be read only by its owner.
A disk that is full when the run is under way costs lines of its log, and not the run: what is
half way through a swap must not end for want of a line.
"""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import UUID

from tollkeeper.kernel.clock import Clock
from tollkeeper.kernel.errors import ConfigurationError
from tollkeeper.migrate.report import Event, Tell
from tollkeeper.telemetry.cards import mask_cards

FOLDER = "runs"
"""Below the folder of backups."""


class RunLog:
    """Writes the events of a run to `<folder>/runs/<run id>.jsonl`."""

    def __init__(
        self, folder: Path, run_id: UUID, *, clock: Clock, say: Callable[[str], None]
    ) -> None:
        """Open the file; `say` hears of it when a line could not be written.

        Raises:
            ConfigurationError: it cannot be written.
        """
        self.path = folder / FOLDER / f"{run_id}.jsonl"
        self._run_id = str(run_id)
        self._clock = clock
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise ConfigurationError(
                problem=f"Cannot write the run's log {self.path}: {error.strerror}. Set "
                "TOLLKEEPER_BACKUPS to a folder that can be written."
            ) from error
        self._say = say
        self._is_cut = False

    def tell(self, event: Event) -> None:
        """Write an event; it has reached the operating system when this returns, if it can."""
        line = {"at": _told(self._clock.now()), "run": self._run_id, **event}
        text = mask_cards(json.dumps(line, ensure_ascii=False, default=str)) + "\n"
        rest = ("\n" if self._is_cut else "").encode() + text.encode()
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
            self._is_cut = False
        except OSError as error:
            if not self._is_cut:
                self._say(f"lines of the run's log {self.path} are lost: {error.strerror}")
            self._is_cut = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Say how the run ended, and make it last."""
        if error is not None:
            self.tell({"event": "migrate.run_failed", "error": type(error).__name__,
                       "reason": str(error)})  # fmt: skip
        with suppress(OSError):  # it was said when it was written
            os.fsync(self._file)
        os.close(self._file)


def both(*listeners: Tell) -> Tell:
    """Return a listener that tells all of them."""

    def tell(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return tell


def _told(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%S.%f}Z"
