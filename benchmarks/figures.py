"""What a benchmark returns: figures with their targets, and the table they make."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE
from rich.table import Table

from benchmarks.measure import Sample, median_of, median_percentiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the table: a measured value, what it should be, and the rounds behind it.

    `target` is a lower bound, or an upper one with `at_most`; None: for information. `samples` are
    our own rounds, `compared` the rounds of what we are compared with.
    """

    what: str
    value: float
    unit: str
    target: float | None = None
    at_most: bool = False
    samples: tuple[Sample, ...] = ()
    compared: tuple[Sample, ...] = ()
    note: str = ""

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.target is None:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target


def table_of(figures: Sequence[Figure], title: str) -> Table:
    """Return the figures as a table; percentiles and batch sizes are medians over the rounds."""
    table = Table(title=title, title_justify="left", box=SIMPLE, show_edge=False, pad_edge=False)
    table.add_column("what", min_width=30)
    for heading in ("measured", "wanted", "", "P50", "P95", "P99", "batch"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("how", min_width=24)
    for figure in figures:
        table.add_row(
            figure.what,
            _value(figure.value, figure.unit),
            _wanted(figure),
            {True: "[green]ok[/]", False: "[bold red]missed[/]", None: ""}[figure.is_met],
            *_latencies(figure.samples),
            figure.note,
        )
    return table


def load_note(samples: Sequence[Sample]) -> str:
    """Say how busy the machine was: the highest load average of the rounds."""
    return f"load {max(sample.load_average for sample in samples):.1f}"


def _wanted(figure: Figure) -> str:
    if figure.target is None:
        return ""
    return f"{'<=' if figure.at_most else '>='} {_value(figure.target, figure.unit)}"


def _value(value: float, unit: str) -> str:
    if unit in {"%", "of 1"}:
        return f"{value:,.4g} {unit}"  # whether it is 99.9 or 99.99 matters
    if unit in {"x", "s", "ms", "µs"}:
        return f"{value:,.3g} {unit}" if value < 100 else f"{value:,.0f} {unit}"
    return f"{value:,.0f}{unit}"


def _latencies(samples: Sequence[Sample]) -> tuple[str, str, str, str]:
    if not samples:
        return "", "", "", ""
    batches = [sample for sample in samples if sample.batch_mean is not None]
    p50, p95, p99 = median_percentiles(samples)
    return (
        _latency(p50),
        _latency(p95),
        _latency(p99),
        f"{median_of(batches, lambda s: s.batch_mean or 0):.0f}" if batches else "",
    )


def _latency(value_ms: float) -> str:
    if value_ms < 0.1:
        return f"{value_ms * 1_000:.1f} µs"
    return f"{value_ms:.2f} ms" if value_ms < 1 else f"{value_ms:.1f} ms"
