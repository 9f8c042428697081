"""All figures of the pool, beside those of asyncpg's and psycopg's pools where they can be had."""

from benchmarks.bench import Bench
from benchmarks.figures import Figure
from benchmarks.pool import cancels, fairness, idle, overload, restart, steady, tuning
from benchmarks.pool.contestants import silence

QUICK_PERIODS_MIN = (5, 150)


def measure(bench: Bench) -> list[Figure]:
    """Return the figures of the pool."""
    with silence():
        return [
            *idle.measure(bench),
            *overload.measure(bench),
            *fairness.measure(bench),
            *steady.measure(bench),
            *restart.measure(bench),
            *cancels.measure(bench),
            _tuning(bench),
        ]


def _tuning(bench: Bench) -> Figure:
    """Return how often the size turned round in the worst hour of any square wave."""
    periods_min = QUICK_PERIODS_MIN if bench.quick else tuning.PERIODS_MIN
    worst = {
        minutes: tuning.simulate(tuning.wave(minutes)).reversals_in_worst_hour()
        for minutes in periods_min
    }
    return Figure(
        what="pool: reversals of the tuned size in the worst hour",
        value=max(worst.values()),
        unit="",
        target=tuning.MOST_REVERSALS_PER_HOUR,
        at_most=True,
        note="simulated, 6 h of a square wave from 5 to 40 requests/s; by its period: "
        + ", ".join(f"{minutes} min {turns}" for minutes, turns in worst.items()),
    )
