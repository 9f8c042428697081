"""Exposures and outcomes on a real PostgreSQL: each counted once, whatever order they come in."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import asyncpg
import msgspec
import pytest
from tests.counting import (
    Counting,
    Storm,
    assert_sound,
    expose,
    in_pieces,
    record,
    running_counting,
    words_of,
)
from tests.experiments import create, definition

from tollkeeper.database.driver import Connection
from tollkeeper.kernel.backoff import Backoff
from tollkeeper.shadow.counting import Plan
from tollkeeper.shadow.engine import Result
from tollkeeper.shadow.errors import ExperimentNotFound, OutcomeFailed
from tollkeeper.shadow.model import Exposed, Request
from tollkeeper.shadow.store import CountingStore, Facts

MOVE = "SELECT move_experiment($1, version, $2) FROM experiments WHERE experiment_no = $1"
OUTCOME_STATUSES = (
    "SELECT array_agg(status ORDER BY outcome_id) FROM outcomes WHERE experiment_no = $1"
)


async def test_an_outcome_of_an_exposed_unit_is_counted(
    counting: Counting, running: int, shadow_owner: Connection
) -> None:
    results = await counting.execute(expose(running, "ann", 1), record(running, "ann", value=3))

    assert ["exposed", "counted"] == words_of(results)
    await assert_sound(shadow_owner, running, exposed=1, units=1, total=3)


async def test_an_outcome_waits_for_its_exposure_and_is_counted_with_it(
    counting: Counting, running: int, shadow_owner: Connection
) -> None:
    first = await counting.execute(record(running, "ann", "a", 2), record(running, "ann", "b", 5))
    await assert_sound(shadow_owner, running, exposed=0, units=0, total=0)
    later = await counting.execute(
        record(running, "ann", "a", 2), expose(running, "ann"), record(running, "ann", "b", 5)
    )

    assert ["waiting", "waiting"] == words_of(first)
    assert ["waiting before", "exposed", "counted before"] == words_of(later)
    await assert_sound(shadow_owner, running, exposed=1, units=1, total=7)


async def test_the_first_exposure_stands_for_ever(
    counting: Counting, running: int, shadow_owner: Connection
) -> None:
    then = datetime.now(UTC) - timedelta(minutes=5)
    first = expose(running, "ann", 1, exposed_at=then, attributes=b'{"plan": "free"}')
    results = await counting.execute(first, expose(running, "ann", 0))
    results += await counting.execute(expose(running, "ann", 0))
    row = await shadow_owner.fetchrow("SELECT attributes, variant_no, probability FROM units")

    kept = Exposed(variant_no=1, epoch=1, probability=0.5, exposed_at=then, is_new=True)
    again = msgspec.structs.replace(kept, is_new=False)
    assert [kept, again, again] == results
    assert row is not None
    assert ('{"plan": "free"}', 1, 0.5) == tuple(
        row[name] for name in ("attributes", "variant_no", "probability")
    )
    await assert_sound(shadow_owner, running, exposed=1, units=0, total=0)


async def test_outcomes_out_of_their_time_are_kept_and_not_counted(
    counting: Counting, running: int, shadow_owner: Connection
) -> None:
    now = datetime.now(UTC)
    exposed_at = now - timedelta(minutes=10)
    await counting.execute(record(running, "ann", "0", occurred_at=now - timedelta(minutes=50)))
    results = await counting.execute(
        expose(running, "ann", exposed_at=exposed_at),
        record(running, "ann", "1", occurred_at=exposed_at - timedelta(seconds=3_601)),
        record(running, "ann", "2", occurred_at=exposed_at - timedelta(seconds=3_600)),
        record(running, "ann", "3", 9, metric_no=2, occurred_at=exposed_at + timedelta(minutes=2)),
        record(running, "ann", "4", occurred_at=exposed_at + timedelta(seconds=3_600)),
    )

    assert ["exposed", "before_exposure", "counted", "outside_window", "counted"] == words_of(
        results
    )
    assert [1, 2, 1, 3, 1] == await shadow_owner.fetchval(OUTCOME_STATUSES, running)
    await assert_sound(shadow_owner, running, exposed=1, units=1, total=3)


async def test_values_of_a_unit_are_combined_as_its_metric_says(
    counting: Counting, running: int, shadow_owner: Connection
) -> None:
    await counting.execute(expose(running, "ann"))
    for number, values in enumerate([(1, 2, 2), (0, 1, 0), (0.25, -0.5, 1), (-3, -2.5, -4)]):
        for place, value in enumerate(values):
            unit = record(running, "ann", f"{number}-{place}", value, metric_no=number)
            assert ["counted"] == words_of(await counting.execute(unit))
    found = await shadow_owner.fetch("SELECT value_micro FROM unit_values ORDER BY metric_no")

    assert [5_000_000, 1_000_000, 250_000, -2_500_000] == [int(row["value_micro"]) for row in found]
    assert 0 == await shadow_owner.fetchval(
        "SELECT count(*) FROM experiment_differences($1)", running
    )


async def test_sums_of_the_largest_values_are_exact(
    counting: Counting, running: int, shadow_owner: Connection
) -> None:
    largest, units = 10**12, 20
    requests: list[Request] = [expose(running, f"unit-{number}") for number in range(units)]
    requests += [
        record(running, f"unit-{number}", f"o-{place}", largest)
        for number in range(units)
        for place in range(10)
    ]
    await counting.execute(*requests)
    squares = await shadow_owner.fetchval("SELECT sum(squares)::text FROM arm_statistics")
    total = await shadow_owner.fetchval("SELECT sum(total)::text FROM arm_statistics")

    assert (str(units * (largest * 10**7) ** 2), str(units * largest * 10**7)) == (squares, total)


async def test_what_cannot_be_is_refused_and_leaves_nothing(
    counting: Counting, running: int, shadow_owner: Connection
) -> None:
    draft = await create(shadow_owner, "draft", wanted=definition())
    old = datetime.now(UTC) - timedelta(hours=2)
    results = await counting.execute(
        record(running, "ann", occurred_at=old),
        record(running, "ann", metric_no=4),
        record(running, "ann", value=0.5),
        record(running, "ann", value=2, metric_no=1),
        expose(running, "ann", 2),
        expose(running, "ann", epoch=2),
        expose(draft, "ann"),
        record(draft, "ann"),
        expose(4_711, "ann"),
        record(4_711, "ann"),
    )

    assert [
        "UnitNotExposed", "MetricUnknown", "ValueInvalid", "ValueInvalid", "VariantUnknown",
        "EpochUnknown", "ExperimentNotRunning", "ExperimentNotRunning", "ExperimentNotFound",
        "ExperimentNotFound",
    ] == words_of(results)  # fmt: skip
    assert 0 == await shadow_owner.fetchval("SELECT count(*) FROM units")


async def test_an_id_with_another_content_is_refused(
    counting: Counting, running: int, shadow_owner: Connection
) -> None:
    when = datetime.now(UTC)
    await counting.execute(expose(running, "ann"), record(running, "ann", "o", 2, occurred_at=when))
    results = await counting.execute(
        record(running, "ann", "o", 3, occurred_at=when),
        record(running, "ann", "o", 2, metric_no=3),
        record(running, "ann", "o", 2, occurred_at=when + timedelta(microseconds=1)),
        record(running, "ann", "o", 2),
        record(running, "ann", "o", 2, occurred_at=when),
    )

    assert ["OutcomeReused"] * 3 + ["counted before"] * 2 == words_of(results)
    await assert_sound(shadow_owner, running, exposed=1, units=1, total=2)


async def test_a_paused_experiment_keeps_who_was_assigned_and_counts_them(
    counting: Counting, running: int, shadow_owner: Connection
) -> None:
    await counting.execute(expose(running, "ann"))
    await shadow_owner.execute(MOVE, running, "paused")
    paused = await counting.execute(
        expose(running, "ann"), expose(running, "bob"), record(running, "ann", "a")
    )
    await shadow_owner.execute(MOVE, running, "ended")
    ended = await counting.execute(
        record(running, "ann", "b"), record(running, "bob"), expose(running, "cleo")
    )

    assert ["exposed before", "ExperimentNotRunning", "counted"] == words_of(paused)
    assert ["counted", "UnitNotExposed", "ExperimentNotRunning"] == words_of(ended)
    await assert_sound(shadow_owner, running, exposed=1, units=1, total=2)


async def test_new_weights_are_known_to_the_first_batch_after_them(
    counting: Counting, running: int, shadow_owner: Connection
) -> None:
    before = await counting.execute(expose(running, "ann", epoch=2))
    await shadow_owner.execute("SELECT begin_epoch($1, 2, ARRAY[0.1, 0.9])", running)
    after = await counting.execute(expose(running, "ann", epoch=2), expose(running, "bob"))

    assert ["EpochUnknown"] == words_of(before)
    assert ["exposed", "exposed"] == words_of(after)
    await assert_sound(shadow_owner, running, exposed=2, units=0, total=0)


async def test_nothing_is_counted_while_somebody_decides(
    counting: Counting, running: int, shadow_owner: Connection
) -> None:
    await counting.execute(expose(running, "ann"))
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    async with shadow_owner.transaction():
        await shadow_owner.execute("SELECT own_experiment($1)", running)
        call = asyncio.ensure_future(counting.execute(record(running, "ann")))
        async with asyncio.timeout(10):
            while 0 == await shadow_owner.fetchval(waiting):
                await asyncio.sleep(0.002)
        counted = await shadow_owner.fetchval("SELECT count(*) FROM outcomes")

    assert 0 == counted
    assert ["counted"] == words_of(await call)


async def test_a_request_that_the_database_will_not_take_fails_alone(
    counting: Counting, running: int, shadow_owner: Connection
) -> None:
    """The API lets no such text through; if it ever does, the neighbours must not pay."""
    results = await counting.execute(
        expose(running, "ann"), record(running, "ann", "NUL \0"), record(running, "ann", "o", 4)
    )

    assert ["exposed", "OutcomeFailed", "counted"] == words_of(results)
    assert isinstance(results[1], OutcomeFailed)
    assert isinstance(results[1].__cause__, asyncpg.PostgresError)
    await assert_sound(shadow_owner, running, exposed=1, units=1, total=4)


async def test_duplicates_in_any_order_from_two_processes_are_counted_once(
    running: int, shadow_owner: Connection, shadow_dsn: str
) -> None:
    """One retry is enough: who was overtaken has the experiment alone then."""
    storm, once = Storm(running, 150), Backoff(retries=1)
    async with (
        running_counting(shadow_dsn, backoff=once) as one,
        running_counting(shadow_dsn, backoff=once) as other,
    ):
        answers = await asyncio.gather(
            *(
                in_pieces(each, storm.shuffled(seed), callers=20, seed=seed)
                for seed, each in enumerate((one, other, one, other))
            )
        )
        overtaken = one.tally.retries["contention"] + other.tally.retries["contention"]
    words = words_of([result for each in answers for result in each])

    assert {
        "exposed", "exposed before", "counted", "waiting", "counted before", "waiting before",
    } >= set(words)  # fmt: skip
    assert overtaken > 0
    assert len(storm.requests) == sum(not word.endswith("before") for word in words)
    await storm.assert_counted(shadow_owner, running)


class MeetingStore(CountingStore):
    """A store whose first writes wait for each other: all have looked before any writes."""

    def __init__(self, meeting: asyncio.Barrier) -> None:
        super().__init__()
        self._meeting = meeting
        self._has_met = False

    async def write(self, connection: Connection, plan: Plan, facts: Facts) -> bool:
        if not self._has_met:
            self._has_met = True
            await self._meeting.wait()
        return await super().write(connection, plan, facts)


def _exposures(experiment_no: int, variant_no: int) -> Sequence[Request]:
    return [expose(experiment_no, "ann", variant_no), record(experiment_no, "ann", "o", 2)]


def _waiting(experiment_no: int, _: int) -> Sequence[Request]:
    return [record(experiment_no, "ann", "o", 2)]


Racers = tuple[Callable[[int, int], Sequence[Request]], ...]
RACES: Mapping[str, tuple[Racers, int]] = {
    "two exposures": ((_exposures, _exposures), 1),
    "an outcome and an exposure": ((_waiting, _exposures), 1),
    "two outcomes": ((_waiting, _waiting), 0),
}
"""What two processes ask for at once, and how many units are exposed in the end."""


@pytest.mark.parametrize("race", RACES)
async def test_two_processes_that_meet_at_a_new_unit_count_it_once(
    running: int, shadow_owner: Connection, shadow_dsn: str, race: str
) -> None:
    """Neither has a row to hold: one is faster, the other looks again."""
    makers, exposed = RACES[race]
    meeting = asyncio.Barrier(2)

    async def racer(number: int) -> tuple[list[Result], int]:
        async with running_counting(shadow_dsn, store=MeetingStore(meeting), lanes=1) as racing:
            results = await racing.execute(*makers[number](running, number))
            return results, racing.tally.retries["contention"]

    racers = await asyncio.gather(racer(0), racer(1))
    exposures = [each for results, _ in racers for each in results if isinstance(each, Exposed)]
    retried = [retries for _, retries in racers]

    assert [False, True] == sorted(retries > 0 for retries in retried)
    assert exposed == sum(each.is_new for each in exposures)
    assert exposed == len({each.variant_no for each in exposures})
    await assert_sound(shadow_owner, running, exposed=exposed, units=exposed, total=2 * exposed)


@pytest.mark.parametrize("outcomes_before", [0, 1])
async def test_two_processes_that_meet_at_a_units_value_add_to_it_both(
    running: int, shadow_owner: Connection, shadow_dsn: str, outcomes_before: int
) -> None:
    """Its rows are not locked: who is slower finds another value than was read."""
    before = [record(running, "ann", f"before-{number}") for number in range(outcomes_before)]
    async with running_counting(shadow_dsn) as counting:
        await counting.execute(expose(running, "ann"), *before)
    meeting = asyncio.Barrier(2)

    async def racer(number: int) -> tuple[list[str], int]:
        async with running_counting(shadow_dsn, store=MeetingStore(meeting), lanes=1) as racing:
            results = await racing.execute(record(running, "ann", f"o-{number}", 2))
            return words_of(results), racing.tally.retries["contention"]

    racers = await asyncio.gather(racer(0), racer(1))

    assert [(["counted"], 0), (["counted"], 1)] == sorted(racers)
    await assert_sound(shadow_owner, running, exposed=1, units=1, total=4 + outcomes_before)


async def test_an_experiment_is_found_as_it_is_within_a_second(
    counting: Counting, running: int, shadow_owner: Connection
) -> None:
    found = await counting.catalogue.find("checkout")
    again = await counting.catalogue.find("checkout")
    await shadow_owner.execute("SELECT begin_epoch($1, 2, ARRAY[0.1, 0.9])", running)
    refreshed = await counting.catalogue.refreshed("checkout")
    with pytest.raises(ExperimentNotFound, match="no experiment nowhere"):
        await counting.catalogue.find("nowhere")

    assert found is again
    assert (running, (0.5, 0.5)) == (found.experiment_no, found.weights)
    assert (0.1, 0.9) == refreshed.weights
    assert refreshed is await counting.catalogue.find("checkout")
