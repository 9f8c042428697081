"""Every operation on a real PostgreSQL against a reference of a few lines, whatever happens.

Two engines share the database, whose clock is set forward and back. Steps come alone, in bursts,
twice, at once from both sides, on dying backends, and from a process that ends around its commit:
each must do what the reference does, once. An hour of the ledger is a second of the reference.
"""

import asyncio
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.cutting_proxy import Cut
from tests.database_clock import make_settable, set_ahead
from tests.hold_steps import MoneyWrite, Reference, Step, amounts, changes, operation_of
from tests.ledger import consume, opening, topup, words_of
from tests.stage import ENGINES, Stage, as_another_request

from tollkeeper.credits.engine import Result
from tollkeeper.credits.model import Kind, Posted, Transaction
from tollkeeper.database.connect import connector
from tollkeeper.database.driver import Connection
from tollkeeper.kernel.ids import TransactionId, mint_key, system_entropy

HOUR_S = 3_600
KEPT_HOURS = 25
"""A key is looked up this long."""

STATE = """
SELECT
    (SELECT balance FROM accounts WHERE account_id = $1) AS balance,
    (SELECT coalesce(sum(amount - captured - released), 0)::bigint FROM holds
     WHERE account_id = $1 AND expires_at > set_clock.clock_timestamp()) AS reserved,
    (SELECT coalesce(sum(taken - refunded), 0)::bigint FROM refunds WHERE account_id = $1)
    + (SELECT coalesce(sum(amount), 0)::bigint FROM credit_transactions AS t
       WHERE account_id = $1 AND kind IN ('consume', 'capture')
       AND NOT EXISTS (SELECT FROM refunds AS r WHERE r.transaction_id = t.transaction_id))
        AS refundable
"""

engines = st.integers(0, ENGINES - 1)
bursts = st.lists(changes, min_size=1, max_size=12)
turns = st.integers(0, 50)
cuts = st.sampled_from((Cut.BEFORE, Cut.AFTER))


class LedgerMachine(RuleBasedStateMachine):
    """Takes the same steps on the ledger and on the reference."""

    stage: Stage

    @initialize()
    def open(self) -> None:
        self.account_id = f"example-{next(self.stage.examples)}"
        self.reference = Reference()
        self.holds: list[TransactionId] = []
        self.takings: list[TransactionId] = []
        self.posted: list[tuple[MoneyWrite, Transaction, int]] = []
        self._set_clock()
        (opened,) = self.stage.answer(0, [opening(self.account_id)], apart=True, killing=False)
        assert ["opened"] == words_of([opened])

    def _set_clock(self) -> None:
        hours = timedelta(hours=self.reference.second)
        self.stage.execute(lambda owner: set_ahead(owner, hours))

    def _drawn(self, step: Step) -> tuple[MoneyWrite, str] | None:
        """Return what a step asks for and what the reference says to it."""
        made = self.takings if step[0] == "refund" else self.holds
        operation = operation_of(
            step, made, account_id=self.account_id, key=self._key(), second_s=HOUR_S
        )
        if operation is None:
            return None
        return operation, self.reference.decide(step, len(made))

    def _key(self) -> str:
        """Mint a key as a client does whose clock goes with the database's."""
        now = datetime.now(UTC) + timedelta(hours=self.reference.second)
        return mint_key(now, system_entropy())

    def _note(self, operation: MoneyWrite, result: Result) -> None:
        if not isinstance(result, Posted):
            return
        transaction = result.transaction
        self.posted.append((operation, transaction, self.reference.second))
        if transaction.kind is Kind.HOLD:
            self.holds.append(transaction.transaction_id)
        elif transaction.kind in {Kind.CONSUME, Kind.CAPTURE}:
            self.takings.append(transaction.transaction_id)

    def _take(
        self, engine: int, steps: Sequence[Step], *, apart: bool, killing: bool = False
    ) -> None:
        drawn = [each for each in map(self._drawn, steps) if each is not None]
        operations = [operation for operation, _ in drawn]
        results = self.stage.answer(engine, operations, apart=apart, killing=killing)

        assert [word for _, word in drawn] == words_of(results), steps
        for operation, result in zip(operations, results, strict=True):
            self._note(operation, result)

    @rule(engine=engines, amount=amounts)
    def fund(self, engine: int, amount: int) -> None:
        self._take(engine, [("topup", 3 * amount)], apart=True)

    @rule(engine=engines, step=changes)
    def step(self, engine: int, step: Step) -> None:
        self._take(engine, [step], apart=True)

    @rule(engine=engines, steps=bursts, apart=st.booleans())
    def burst(self, engine: int, steps: list[Step], apart: bool) -> None:
        self._take(engine, steps, apart=apart)

    @rule(engine=engines, steps=bursts)
    def burst_on_dying_backends(self, engine: int, steps: list[Step]) -> None:
        self._take(engine, steps, apart=True, killing=True)

    @precondition(lambda self: self.posted)
    @rule(engine=engines, turn=turns)
    def retry(self, engine: int, turn: int) -> None:
        """A late retry is answered as the first time, or refused: it never acts again."""
        operation, transaction, hour = self.posted[turn % len(self.posted)]
        again = as_another_request(operation)
        (result,) = self.stage.answer(engine, [again], apart=True, killing=False)
        if self.reference.second - hour >= KEPT_HOURS:
            assert ["key_expired"] == words_of([result])
            return
        assert result == Posted(transaction, replayed=True)

    @precondition(lambda self: self.posted)
    @rule(engine=engines, turn=turns, amount=amounts, spends=st.booleans())
    def reuse_a_key(self, engine: int, turn: int, amount: int, spends: bool) -> None:
        operation, _, hour = self.posted[turn % len(self.posted)]
        if self.reference.second - hour >= KEPT_HOURS:
            return
        make = consume if spends else topup
        other = msgspec.structs.replace(
            make(self.account_id, 1_000 + amount), key_hash=operation.key_hash
        )
        (result,) = self.stage.answer(engine, [other], apart=True, killing=False)
        assert ["key_reused"] == words_of([result])

    @rule(step=changes, times=st.integers(1, 4))
    def race_with_one_key(self, step: Step, times: int) -> None:
        drawn = self._drawn(step)
        if drawn is None:
            return
        operation, expected = drawn
        results = self.stage.race(operation, times=times)
        if expected != "posted":
            assert [expected] * len(results) == words_of(results)
            return
        made = [result for result in results if words_of([result]) == ["posted"]]
        assert ["posted"] + ["replayed"] * (len(results) - 1) == sorted(words_of(results))
        assert {made[0].transaction} == {r.transaction for r in results if isinstance(r, Posted)}  # type: ignore[union-attr]  # posted
        self._note(operation, made[0])

    @rule(engine=engines, step=changes, cut=cuts)
    def die_around_the_commit(self, engine: int, step: Step, cut: Cut) -> None:
        """Whoever asked hears nothing, and asks somebody else with the same key."""
        drawn = self._drawn(step)
        if drawn is None:
            return
        operation, expected = drawn
        heard = self.stage.die(operation, cut)
        again = as_another_request(operation)
        (result,) = self.stage.answer(engine, [again], apart=True, killing=False)
        if expected == "posted":
            assert heard is None
            assert ["replayed" if cut is Cut.AFTER else "posted"] == words_of([result])
        else:
            assert {expected} == set(words_of([result] if heard is None else [heard, result]))
        self._note(operation, result)

    @rule(hours=st.integers(1, 9))
    def wait(self, hours: int) -> None:
        self.reference.wait(hours)
        self._set_clock()

    @rule(engine=engines, hours=st.integers(1, 100))
    def set_the_clock_back(self, engine: int, hours: int) -> None:
        """What has expired stays so: it is booked before."""
        self.stage.sweep(engine)
        self.reference.second -= hours
        self._set_clock()

    @rule(engine=engines)
    def sweep(self, engine: int) -> None:
        self.stage.sweep(engine)

    @rule(engine=engines)
    def replace_engine(self, engine: int) -> None:
        self.stage.replace(engine)

    @invariant()
    def balances_holds_and_refunds_agree(self) -> None:
        if not hasattr(self, "reference"):
            return
        found = self.stage.execute(lambda owner: owner.fetchrow(STATE, self.account_id))
        assert found is not None
        reference = self.reference

        assert [reference.balance, sum(reference.left), sum(reference.taken)] == list(found)

    def teardown(self) -> None:
        if hasattr(self, "account_id"):
            self.stage.assert_sound(self.account_id)


@pytest.fixture
def stage(credits_dsn: str) -> Iterator[Stage]:
    async def prepare() -> None:
        owner: Connection = await connector(credits_dsn)()
        await make_settable(owner)
        await owner.close()

    asyncio.run(prepare())
    stage = Stage(credits_dsn)
    yield stage
    stage.close()


def test_the_ledger_does_what_the_reference_does(stage: Stage) -> None:
    class Machine(LedgerMachine):
        pass

    Machine.stage = stage
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=18,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
