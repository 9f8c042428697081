"""Usage traces: CSV files with one LLM request per line, read, checked and priced line by line.

Columns `TIMESTAMP,ContextTokens,GeneratedTokens` in any order, others beside them allowed. No I/O
but on the file it is given; nothing is billed here. A file is never held in memory.

Invariants: every line is either a row, blank, or a `BadLine` that says what is wrong; a row's key
depends on the file's content, the line and the terms, on nothing else.
"""

import csv
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BufferedReader, BytesIO
from typing import NamedTuple

from tollkeeper.client.errors import ClientError
from tollkeeper.kernel.amounts import MAX_AMOUNT_MINOR

BinaryFile = BufferedReader | BytesIO
"""A file that can be read twice."""

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")

LINE_LIMIT_BYTES = 64 * 1024
"""Longest line read; a longer one is malformed."""

BAD_LINES_LISTED = 20
"""Malformed lines kept with their reason; beyond that they are counted."""


class TraceRow(NamedTuple):
    """One request; `line` counts from 1, the header being line 1. A plain tuple: files are long."""

    line: int
    at: datetime
    context_tokens: int
    generated_tokens: int


class BadLine(NamedTuple):
    """A line that cannot be billed, and why."""

    line: int
    problem: str


@dataclass(eq=False, kw_only=True)
class TraceMalformed(ClientError):
    """The trace has lines that cannot be billed, or is no trace at all; nothing was billed."""

    path: str
    bad: tuple[BadLine, ...]
    count: int

    def message(self) -> str:
        """Name the first malformed line, and how many there are."""
        line, problem = self.bad[0]
        more = f"; {self.count - 1:,} more lines are malformed" if self.count > 1 else ""
        return f"{self.path}, line {line:,}: {problem}{more}; nothing was billed"


@dataclass(eq=False, kw_only=True)
class TraceUnbillable(ClientError):
    """The trace is well-formed and cannot be billed all the same; `problem` is a full sentence."""

    problem: str

    def message(self) -> str:
        """Return the problem."""
        return self.problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How a trace is billed: over how many accounts, at which prices in minor units per token.

    `run` tells deliberate repetitions apart: another run is other accounts and other keys.
    """

    accounts: int
    price_context: int
    price_generated: int
    run: str = ""

    def __post_init__(self) -> None:
        if self.accounts < 1 or self.price_context < 0 or self.price_generated < 0:
            raise ValueError("terms need at least one account and prices of at least 0")

    def cost_of(self, row: TraceRow) -> int:
        """Return what a row costs, in minor units; 0 means that there is nothing to bill."""
        context = row.context_tokens * self.price_context
        return context + row.generated_tokens * self.price_generated

    def account_of(self, line: int) -> int:
        """Return the number of the account that pays for a line: round robin, by the line alone."""
        return line % self.accounts


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What a whole trace holds, read before anything is billed."""

    digest: str
    terms: Terms
    rows: int
    free: int
    units: int
    units_by_account: tuple[int, ...]
    bad: tuple[BadLine, ...]
    bad_count: int

    @property
    def billable(self) -> int:
        """Return how many rows cost something."""
        return self.rows - self.free

    @property
    def account_ids(self) -> tuple[str, ...]:
        """Return the ids of the accounts: others for every trace, terms and run."""
        name = f"replay-{self._derive('accounts')[:10]}"
        return tuple(f"{name}-{number:04}" for number in range(self.terms.accounts))

    def consumption_key(self, line: int) -> str:
        """Return the idempotency key of a line."""
        return self._derive("consumption", line)

    def hold_key(self, line: int) -> str:
        """Return the idempotency key of a line's hold."""
        return self._derive("hold", line)

    def topup_key(self, number: int, amount: int) -> str:
        """Return the idempotency key of an account's top-up."""
        return self._derive("topup", number, amount)

    def _derive(self, *parts: str | int) -> str:
        # Not a UUIDv7: such a key ages from when it was minted, and this one is always the same.
        terms = self.terms
        fixed = (self.digest, terms.accounts, terms.price_context, terms.price_generated, terms.run)
        text = "\n".join(map(str, ("tollkeeper replay 1", *fixed, *parts)))
        return hashlib.sha256(text.encode()).hexdigest()


def survey_trace(file: BinaryFile, terms: Terms) -> Survey:
    """Read a trace from the start to the end: its digest, its sums and its malformed lines."""
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    by_account = [0] * terms.accounts
    rows = free = bad_count = 0
    bad: list[BadLine] = []
    for entry in price_rows(file, terms):
        if isinstance(entry, BadLine):
            bad_count += 1
            if len(bad) < BAD_LINES_LISTED:
                bad.append(entry)
            continue
        row, cost = entry
        rows += 1
        free += cost == 0
        by_account[terms.account_of(row.line)] += cost
    return Survey(
        digest=digest,
        terms=terms,
        rows=rows,
        free=free,
        units=sum(by_account),
        units_by_account=tuple(by_account),
        bad=tuple(bad),
        bad_count=bad_count,
    )


def price_rows(file: BinaryFile, terms: Terms) -> Iterator[tuple[TraceRow, int] | BadLine]:
    """Yield each row with its cost, and each line that has none, in the file's order."""
    for entry in read_rows(file):
        if isinstance(entry, BadLine):
            yield entry
            continue
        cost = terms.cost_of(entry)
        if cost > MAX_AMOUNT_MINOR:
            yield BadLine(entry.line, f"it costs {cost}, more than an amount can hold")
            continue
        yield entry, cost


def read_rows(file: BinaryFile) -> Iterator[TraceRow | BadLine]:
    """Yield the rows and malformed lines of a trace; after a wrong header there is no more."""
    file.seek(0)
    layout: _Layout | None = None
    for line, raw in _read_lines(file):
        try:
            cells = _split(raw)
            if layout is None:
                layout = _Layout.of_header(cells)
            elif cells:
                yield layout.row_of(line, cells)
        except _Malformed as error:
            yield BadLine(line, str(error))
            if layout is None:
                return
    if layout is None:
        yield BadLine(1, "the file is empty")


class _Malformed(Exception):  # never leaves this module
    """What is wrong with a line."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the header puts the columns."""

    width: int
    timestamp: int
    context: int
    generated: int

    @classmethod
    def of_header(cls, cells: list[str]) -> "_Layout":
        names = [cell.removeprefix("\ufeff").strip() for cell in cells]
        if any(names.count(column) != 1 for column in COLUMNS):
            raise _Malformed(f"the header must name {', '.join(COLUMNS)}")
        return cls(len(names), *(names.index(column) for column in COLUMNS))

    def row_of(self, line: int, cells: list[str]) -> TraceRow:
        if len(cells) != self.width:
            raise _Malformed(f"{len(cells)} columns where the header has {self.width}")
        return TraceRow(
            line,
            _moment(cells[self.timestamp]),
            _tokens("ContextTokens", cells[self.context]),
            _tokens("GeneratedTokens", cells[self.generated]),
        )


def _read_lines(file: BinaryFile) -> Iterator[tuple[int, bytes | None]]:
    # None stands for a line that is too long to be read.
    line = 0
    while raw := file.readline(LINE_LIMIT_BYTES):
        line += 1
        is_whole = len(raw) < LINE_LIMIT_BYTES or raw.endswith(b"\n")
        yield line, raw if is_whole else None
        while not is_whole:
            rest = file.readline(LINE_LIMIT_BYTES)
            is_whole = len(rest) < LINE_LIMIT_BYTES or rest.endswith(b"\n")


def _split(raw: bytes | None) -> list[str]:
    if raw is None:
        raise _Malformed(f"longer than {LINE_LIMIT_BYTES} bytes")
    try:
        text = raw.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise _Malformed(f"byte {error.start + 1} is not UTF-8") from error
    if "\0" in text:
        raise _Malformed("it contains a NUL byte")
    if not text.strip():
        return []
    if '"' not in text:
        return text.split(",")
    try:
        return next(csv.reader((text,), strict=True))
    except csv.Error as error:
        raise _Malformed(f"the quotes do not match: {error}") from error


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text.strip())
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise _Malformed(f"TIMESTAMP is not a time: {_shown(text)}") from error


def _tokens(column: str, text: str) -> int:
    digits = text.strip()
    if digits.isascii() and digits.isdigit():
        if len(digits) > 19 or int(digits) > MAX_AMOUNT_MINOR:
            raise _Malformed(f"{column} is too large: {_shown(text)}")
        return int(digits)
    if not digits:
        raise _Malformed(f"{column} is missing")
    if digits[0] == "-" and digits[1:].isdigit():
        raise _Malformed(f"{column} is negative: {_shown(text)}")
    raise _Malformed(f"{column} is not a whole number: {_shown(text)}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")
