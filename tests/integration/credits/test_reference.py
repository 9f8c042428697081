"""The engine on a real PostgreSQL against a ten-line reference ledger, whatever happens meanwhile.

Two engines share the database. Bursts of concurrent callers, killed backends, engines that leave
and come back: every answer must be the reference ledger's, every balance the same, every chain
sound.
"""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from tests.ledger import ReferenceLedger, consume, opening, topup, words_of
from tests.operations import ACCOUNTS, KEYS, operations
from tests.stage import ENGINES, Stage

from tollkeeper.credits.model import Movement, OpenAccount, Operation

engines = st.integers(0, ENGINES - 1)
bursts = st.lists(operations(), min_size=1, max_size=25)
names = st.sampled_from(ACCOUNTS)
keys = st.sampled_from(KEYS)


class LedgerMachine(RuleBasedStateMachine):
    """Does to the engines and to the reference the same, in the same order."""

    stage: Stage

    @initialize()
    def choose_accounts(self) -> None:
        self.prefix = f"example-{next(self.stage.examples)}-"
        self.reference = ReferenceLedger()

    def _both(
        self, engine: int, batch: list[Operation], *, apart: bool, killing: bool = False
    ) -> None:
        mine = [self._prefixed(operation) for operation in batch]
        expected = [self.reference.decide(operation) for operation in mine]
        found = words_of(self.stage.answer(engine, mine, apart=apart, killing=killing))
        if killing:
            # The engine cannot know whether an opening whose answer was lost was its own.
            expected = [word.replace("reopened", "opened") for word in expected]
            found = [word.replace("reopened", "opened") for word in found]

        assert expected == found

    def _prefixed(self, operation: Operation) -> Operation:
        name = self.prefix + operation.account_id
        if isinstance(operation, OpenAccount):
            return opening(name, operation.tenant_id)
        assert isinstance(operation, Movement)
        return _renamed(operation, name)

    @rule(engine=engines, batch=bursts, apart=st.booleans())
    def burst(self, engine: int, batch: list[Operation], apart: bool) -> None:
        self._both(engine, batch, apart=apart)

    @rule(engine=engines, name=names)
    def open(self, engine: int, name: str) -> None:
        self._both(engine, [opening(name)], apart=True)

    @rule(engine=engines, name=names, amount=st.integers(1, 50), key=keys)
    def top_up(self, engine: int, name: str, amount: int, key: str) -> None:
        self._both(engine, [topup(name, amount, key)], apart=True)

    @rule(engine=engines, name=names, amount=st.integers(1, 50))
    def spend(self, engine: int, name: str, amount: int) -> None:
        self._both(engine, [consume(name, amount)], apart=True)

    @rule(engine=engines, batch=bursts)
    def burst_on_dying_backends(self, engine: int, batch: list[Operation]) -> None:
        self._both(engine, batch, apart=True, killing=True)

    @rule(engine=engines)
    def replace_engine(self, engine: int) -> None:
        self.stage.replace(engine)

    @invariant()
    def balances_are_the_references(self) -> None:
        for account_id in getattr(self, "reference", ReferenceLedger()).tenants:
            assert self.reference.balances.get(account_id, 0) == self.stage.balance(account_id)

    def teardown(self) -> None:
        for account_id in getattr(self, "reference", ReferenceLedger()).tenants:
            self.stage.assert_sound(account_id)


def _renamed(operation: Movement, account_id: str) -> Movement:
    """Return the same movement on another account, shard included."""
    moved = consume(account_id, operation.amount)
    return Movement(
        kind=operation.kind, account_id=moved.account_id, shard=moved.shard,
        tenant_id=operation.tenant_id, amount=operation.amount, key_hash=operation.key_hash,
        key_ms=operation.key_ms, fingerprint=operation.fingerprint, entropy=operation.entropy,
        description=operation.description, metadata=operation.metadata,
    )  # fmt: skip


@pytest.fixture
def stage(credits_dsn: str) -> Iterator[Stage]:
    stage = Stage(credits_dsn)
    yield stage
    stage.close()


def test_the_engine_is_a_ledger(stage: Stage) -> None:
    class Machine(LedgerMachine):
        pass

    Machine.stage = stage
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=15,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
