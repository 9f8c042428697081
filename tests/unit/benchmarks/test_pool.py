"""The arithmetic behind the figures of the pool."""

import asyncio
from random import Random

import pytest
from benchmarks.figures import Figure, table_of
from benchmarks.measure import in_turns, open_loop
from benchmarks.pool.fairness import jain
from benchmarks.pool.restart import most_within
from benchmarks.pool.steady import served_at_once


def test_jains_index_is_one_when_all_are_alike_and_least_when_one_has_everything() -> None:
    assert 1.0 == jain([7, 7, 7, 7])
    assert 0.25 == jain([28, 0, 0, 0])
    assert 0.9 == jain([1, 2])


def test_most_within_a_window_counts_neighbours_only() -> None:
    assert 0 == most_within([], 1.0)
    assert 3 == most_within([0.0, 0.5, 1.0, 1.4, 3.0, 3.9], 1.0)


def test_perfect_pool_serves_at_once_who_finds_a_connection_free() -> None:
    """The third finds both busy; the fourth comes when the first is done."""
    requests = [(0.0, 2.0), (0.0, 5.0), (1.0, 1.0), (3.0, 1.0)]

    assert 0.75 == served_at_once(2, requests)
    assert 1.0 == served_at_once(3, requests)


async def test_who_begins_changes_with_every_round() -> None:
    order: list[str] = []

    async def note(name: str) -> str:
        order.append(name)
        return name

    results = await in_turns(3, {"a": lambda: note("a"), "b": lambda: note("b")})

    assert ["a", "b", "b", "a", "a", "b"] == order
    assert {"a": ["a"] * 3, "b": ["b"] * 3} == results


async def test_open_loop_does_not_wait_for_one_answer_before_the_next_request() -> None:
    everybody_is_there, due_s = asyncio.Event(), list[float]()

    async def step(at_s: float) -> None:
        due_s.append(at_s)
        if len(due_s) == 3:
            everybody_is_there.set()
        await everybody_is_there.wait()

    await open_loop(1_000.0, 0.05, step, Random(0))

    assert len(due_s) > 3
    assert due_s == sorted(due_s)
    assert all(0.0 < at_s < 0.05 for at_s in due_s)


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [(99.96, "%", "99.96 %"), (0.9934, "of 1", "0.9934 of 1"), (4.157, "µs", "4.16 µs")],
)
def test_shares_are_shown_with_the_digits_that_matter(value: float, unit: str, shown: str) -> None:
    table = table_of([Figure(what="it", value=value, unit=unit)], "title")

    assert [shown] == list(table.columns[1].cells)
