"""What people see: facts, tables, a progress bar with its rate; and JSON where a program looks.

Data goes to standard output, everything about it (progress, remarks, errors) to standard error.
No text steers the terminal: what it would obey or hide is shown escaped (`escapes.py`).
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import zip_longest

import msgspec
from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from tollkeeper.client.escapes import visible

REFRESH_S = 0.2
"""Time between two looks of the progress bar; each costs the load generator about a millisecond."""


Fact = tuple[str, str] | tuple[str, str, str]
"""A name, a value, and where it matters whether that is `good`, `bad` or a warning (`warn`)."""

_STYLES = {"good": "green", "bad": "bold red", "warn": "yellow"}


class Screen:
    """Where output goes; `as_json` means that a program reads standard output."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self._out = Console(highlight=False)
        self._err = Console(stderr=True, highlight=False)

    def json(self, document: object) -> None:
        """Print one JSON document to standard output."""
        self.json_lines((document,))

    def json_lines(self, documents: Sequence[object]) -> None:
        """Print JSON documents to standard output, one a line."""
        for document in documents:
            sys.stdout.write(visible(msgspec.json.encode(document).decode()) + "\n")
        sys.stdout.flush()

    def text(self, text: str) -> None:
        """Print text to standard output: to a file or program as it is, byte for byte."""
        if sys.stdout.isatty():
            text = "\n".join(visible(line.removesuffix("\r")) for line in text.split("\n"))
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()

    @property
    def is_plain(self) -> bool:
        """Whether standard output shows neither colours nor signs beyond letters."""
        out = self._out
        return not out.is_terminal or out.no_color or out.encoding.lower() != "utf-8"

    def clear(self) -> None:
        """Clear the screen, where standard output is one."""
        self._out.clear()

    def remark(self, text: str) -> None:
        """Say something about the run, in one line on standard error."""
        if not self.as_json:
            self._err.print(f"[dim]{_escaped(text)}[/dim]")

    def warn(self, text: str) -> None:
        """Say something that must not be overlooked, on standard error."""
        if not self.as_json:
            self._err.print(f"[yellow]{_escaped(text)}[/yellow]", soft_wrap=True)

    def say(self, text: str, tone: str) -> None:
        """Print a sentence to standard error, in the colour of its tone."""
        said = Text(visible(text), style=_STYLES.get(tone, ""))
        self._err.print(said, soft_wrap=True)

    def facts(self, title: str, facts: Sequence[Fact]) -> None:
        """Print named facts below each other."""
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="cyan", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value, *tone in facts:
            style = _STYLES[tone[0]] if tone else ""
            grid.add_row(f"  {_escaped(name)}", Text(visible(value), style=style))
        self._out.print(f"\n[bold]{_escaped(title)}[/bold]")
        self._out.print(grid)

    def addresses(self, title: str, facts: Sequence[tuple[str, str]]) -> None:
        """Print named facts that people will copy: unwrapped, without a frame."""
        self._out.print(f"\n[bold]{_escaped(title)}[/bold]")
        for name, value in facts:
            line = Text.assemble((f"  {visible(name):<6}", "cyan"), visible(value))
            self._out.print(line, soft_wrap=True)

    def table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        tones: Sequence[str] = (),
    ) -> None:
        """Print rows; a column whose name starts with `#` holds numbers; `tones` are the rows'."""
        self.listing(title, columns).add(rows, tones)

    def listing(self, title: str, columns: Sequence[str]) -> "Listing":
        """Return a table, of columns as above, that is printed as its rows come."""
        return Listing(self._out, title, columns)

    @contextmanager
    def line(self) -> Iterator[Callable[[str], None]]:
        """Lend what replaces one line on standard error; in a file the last one stays."""
        if self.as_json:
            yield lambda _text: None
            return
        with Live(console=self._err, auto_refresh=False) as live:
            yield lambda text: live.update(Text(visible(text)), refresh=True)

    @asynccontextmanager
    async def progress(
        self,
        title: str,
        *,
        total: int | None,
        done: Callable[[], int],
        is_passing: bool = False,
    ) -> AsyncIterator[None]:
        """Show a bar on standard error while the block runs; `done` is asked now and then.

        One that is `is_passing` is there for whoever waits: gone when it is over, and not in files.
        """
        if self.as_json:
            yield
            return
        bar = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=40),
            _CountColumn(),
            _RateColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self._err,
            auto_refresh=False,  # a thread would compete with the event loop
            transient=is_passing,
            disable=is_passing and not self._err.is_terminal,
        )
        task = bar.add_task(title, total=total)

        def look() -> None:
            bar.update(task, completed=done(), refresh=True)

        with bar:
            watcher = asyncio.create_task(_repeat(look))
            try:
                yield
            finally:
                watcher.cancel()
                with suppress(asyncio.CancelledError):
                    await watcher
                look()


class Bars:
    """Shows work whose parts follow each other, in bytes, on a terminal; nothing in a file."""

    def __init__(self, *, is_shown: bool) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._is_shown = is_shown and self._console.is_terminal
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def begin(self, what: str, total: int | None) -> None:
        """Begin a part of `total` bytes; None: nobody knows how many."""
        self.end()
        if self._is_shown:
            self._bar = Progress(
                TextColumn("{task.description:<12}"),
                BarColumn(bar_width=40),
                DownloadColumn(binary_units=True),
                TransferSpeedColumn(),
                TimeRemainingColumn(elapsed_when_finished=True),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task(_escaped(what), total=total)
            self._bar.start()

    def advance(self, done: int) -> None:
        """Add bytes."""
        if self._bar is not None:
            self._bar.advance(self._task, done)

    def end(self) -> None:
        """End the part, whether all was done or not."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


_FILE_WIDTH = 10_000
"""Wider than any row, in characters; rows are as long as they are."""


class Listing:
    """A table that is printed as its rows come: only their widths are kept, which never shrink."""

    def __init__(self, out: Console, title: str, columns: Sequence[str]) -> None:
        self._out = out
        if not out.is_terminal:
            # A file has no edge: what is cut off there is lost to whoever reads it.
            out.width = _FILE_WIDTH
        self._title = title
        self._columns = columns
        self._widths = [0 for _ in columns]
        self._is_begun = False

    def add(self, rows: Sequence[Sequence[str]], tones: Sequence[str] = ()) -> None:
        """Print rows below those before; the first time title and names above them."""
        is_first, self._is_begun = not self._is_begun, True
        title = _escaped(self._title) if is_first else None
        shown = [tuple(map(visible, row)) for row in rows]
        table = Table(title=title, title_justify="left", title_style="bold", box=None)
        table.show_header = is_first
        for number, column in enumerate(self._columns):
            is_number, name = column.startswith("#"), column.removeprefix("#")
            cells = [name, *(row[number] for row in shown)]
            self._widths[number] = max(self._widths[number], *map(cell_len, cells))
            is_last = number == len(self._columns) - 1
            table.add_column(
                name,
                justify="right" if is_number else "left",
                header_style="cyan",
                min_width=None if is_last else self._widths[number],
            )
        for row, tone in zip_longest(shown, tones, fillvalue=""):
            table.add_row(*map(escape, row), style=_STYLES.get(tone, ""))
        if is_first:
            self._out.print()
        self._out.print(table)


class _CountColumn(ProgressColumn):
    """Items done, of how many where that is known."""

    def render(self, task: Task) -> Text:
        done = f"{task.completed:,.0f}"
        return Text(done if task.total is None else f"{done} of {task.total:,.0f}")


class _RateColumn(ProgressColumn):
    """Items per second since the start."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s".rjust(9), style="green")


async def _repeat(look: Callable[[], None]) -> None:
    while True:
        look()
        await asyncio.sleep(REFRESH_S)


def _escaped(text: str) -> str:
    return escape(visible(text))
