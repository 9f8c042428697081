"""Any thresholds over anything that is available: alerts fire as a naive simulation says."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from tests.ledger import consume, opening, topup, words

from tollkeeper.credits import requests
from tollkeeper.credits.alert_model import AlertChanges, Threshold
from tollkeeper.credits.alerts import Setting, alert_at, default_hysteresis, set_thresholds
from tollkeeper.credits.model import Account, Loaded, Operation, Plan
from tollkeeper.credits.planner import plan
from tollkeeper.kernel.amounts import MAX_AMOUNT_MINOR
from tollkeeper.kernel.ids import AccountId, milliseconds_since_epoch

NOW = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
NOW_MS = milliseconds_since_epoch(NOW)
ANN = AccountId("ann")

thresholds = st.lists(
    st.builds(Threshold, threshold=st.integers(1, 12), hysteresis=st.integers(0, 5)),
    max_size=6,
    unique_by=lambda each: each.threshold,
).map(tuple)
steps = st.lists(
    st.one_of(
        st.integers(1, 8).map(lambda amount: topup("ann", amount)),
        st.integers(1, 8).map(lambda amount: consume("ann", amount)),
        st.integers(1, 8).map(lambda amount: requests.reserve(words("ann"), amount=amount)),
    ),
    max_size=25,
)


@dataclass(slots=True)
class NaiveAlerts:
    """What alerts are, told without ids: who fired and re-armed, at which transaction."""

    armed: dict[Threshold, bool] = field(default_factory=dict)
    fired: list[tuple[int, int, int]] = field(default_factory=list)
    rearmed: list[tuple[int, int]] = field(default_factory=list)

    def see(self, sequence: int, available: int) -> None:
        for each, is_armed in sorted(self.armed.items(), key=lambda item: item[0].threshold):
            if is_armed and available < each.threshold:
                self.fired.append((sequence, each.threshold, available))
                self.armed[each] = False
            if not is_armed and available >= each.threshold + each.hysteresis:
                self.rearmed.append((sequence, each.threshold))
                self.armed[each] = True


@dataclass(slots=True)
class KeptAlerts:
    """What the database would keep: plans are done to it one after the other."""

    account: Account
    thresholds: tuple[Threshold, ...] = ()
    fired: list[tuple[int, int, int]] = field(default_factory=list)
    rearmed: list[tuple[int, int]] = field(default_factory=list)
    standing: dict[object, int] = field(default_factory=dict)
    has_read: bool = False

    def set(self, wanted: Sequence[Threshold]) -> Setting | None:
        done = set_thresholds(self.account, self.thresholds, wanted, NOW_MS)
        if done is not None:
            self.account = msgspec.structs.replace(
                self.account, alert_at=done.alert_at, alert_revision=done.alert_revision
            )
            self.thresholds = done.thresholds
            self.keep(done.changes)
        return done

    def execute(self, batch: Sequence[Operation]) -> Plan:
        """Plan as the engine does: with the thresholds only when they are needed."""
        loaded = Loaded(NOW, {ANN: self.account}, {})
        done = plan(loaded, batch)
        self.has_read = bool(done.unread)
        if done.unread:
            assert (ANN,) == done.unread
            loaded = msgspec.structs.replace(loaded, thresholds={ANN: self.thresholds})
            done = plan(loaded, batch)
        assert () == done.unread
        for account in done.moved:
            self.account = account
        self.keep(done.alerts)
        return done

    def keep(self, changes: AlertChanges) -> None:
        switched = {each.threshold.threshold: each.threshold for each in changes.switched}
        self.thresholds = tuple(switched.get(each.threshold, each) for each in self.thresholds)
        for fired in changes.fired:
            assert fired.alert_id not in self.standing
            self.fired.append((fired.sequence, fired.threshold, fired.available))
            self.standing[fired.alert_id] = fired.threshold
            if fired.rearmed_sequence is not None:
                self.rearmed.append((fired.rearmed_sequence, self.standing.pop(fired.alert_id)))
        for ended in changes.ended:
            threshold = self.standing.pop(ended.alert_id)
            if ended.sequence is not None:
                self.rearmed.append((ended.sequence, threshold))


def opened(balance: int) -> KeptAlerts:
    made = plan(Loaded(NOW, {}, {}), [opening("ann"), topup("ann", balance)])
    return KeptAlerts(made.opened[0])


def simulated(done: Plan, naive: NaiveAlerts) -> None:
    for keyed in done.transactions:
        transaction = keyed.transaction
        naive.see(transaction.sequence, transaction.balance - transaction.reserved)


def assert_alike(kept: KeptAlerts, naive: NaiveAlerts) -> None:
    assert sorted(naive.fired) == sorted(kept.fired)
    assert sorted(naive.rearmed) == sorted(kept.rearmed)
    # What stands is what is not armed, and its last alert is the one.
    assert {each.last_alert for each in kept.thresholds if not each.armed} == set(kept.standing)


@given(st.integers(1, 20), thresholds, st.lists(steps, max_size=4))
def test_alerts_fire_exactly_when_a_simulation_says_however_operations_are_batched(
    balance: int, wanted: tuple[Threshold, ...], batches: list[list[Operation]]
) -> None:
    kept, naive = opened(balance), NaiveAlerts(dict.fromkeys(wanted, True))
    kept.set(wanted)
    naive.see(1, balance)
    for batch in batches:
        simulated(kept.execute(batch), naive)

    assert_alike(kept, naive)


@given(st.integers(1, 20), thresholds, steps, steps)
def test_what_a_commit_without_alerts_missed_is_made_up_for_by_the_next_that_comes_near(
    balance: int, wanted: tuple[Threshold, ...], missed: list[Operation], more: list[Operation]
) -> None:
    kept, naive = opened(balance), NaiveAlerts(dict.fromkeys(wanted, True))
    kept.set(wanted)
    naive.see(1, balance)
    unwatched = msgspec.structs.replace(kept.account, alert_at=None)
    for account in plan(Loaded(NOW, {ANN: unwatched}, {}), missed).moved:
        kept.account = msgspec.structs.replace(account, alert_at=kept.account.alert_at)
    before = kept.account
    done = kept.execute(more)
    if kept.has_read:
        naive.see(before.version, before.available)
        simulated(done, naive)

    assert_alike(kept, naive)


@given(st.integers(1, 20), st.lists(st.tuples(thresholds, steps), max_size=4))
def test_thresholds_that_stay_keep_their_state_and_others_leave_nothing_standing(
    balance: int, rounds: list[tuple[tuple[Threshold, ...], list[Operation]]]
) -> None:
    kept, naive = opened(balance), NaiveAlerts()
    for wanted, batch in rounds:
        kept.set(wanted)
        states = {each.threshold: armed for each, armed in naive.armed.items()}
        naive.armed = {each: states.get(each.threshold, True) for each in wanted}
        naive.see(kept.account.version, kept.account.available)

        assert kept.set(wanted) is None, "the same again is no change"
        simulated(kept.execute(batch), naive)

    assert_alike(kept, naive)


@given(st.integers(1, 20), thresholds, steps)
def test_an_alert_is_followed_by_its_rearming_before_the_next_of_its_threshold(
    balance: int, wanted: tuple[Threshold, ...], batch: list[Operation]
) -> None:
    kept = opened(balance)
    kept.set(wanted)
    kept.execute(batch)
    for each in wanted:
        fired = [(at, "fired") for at, threshold, _ in kept.fired if threshold == each.threshold]
        again = [(at, "rearmed") for at, threshold in kept.rearmed if threshold == each.threshold]

        kinds = [kind for _, kind in sorted(fired + again)]
        assert all(first != second for first, second in pairwise(kinds))
        assert kinds[:1] in ([], ["fired"])


@given(st.integers(1, 20), thresholds.filter(bool), steps)
def test_thresholds_are_read_only_when_something_comes_below_the_highest(
    balance: int, wanted: tuple[Threshold, ...], batch: list[Operation]
) -> None:
    kept = opened(balance)
    kept.set(wanted)
    highest, before = alert_at(wanted), kept.account
    done = plan(Loaded(NOW, {ANN: before}, {}), batch)
    seen = [k.transaction.balance - k.transaction.reserved for k in done.transactions]

    assert highest is not None
    is_near = bool(seen) and min([before.available, *seen]) < highest
    assert ((ANN,) if is_near else ()) == tuple(done.unread)


@given(st.integers(1, MAX_AMOUNT_MINOR))
def test_the_hysteresis_of_a_threshold_that_names_none_is_an_amount(threshold: int) -> None:
    hysteresis = default_hysteresis(threshold)

    assert 0 <= hysteresis <= threshold
    assert threshold + hysteresis <= MAX_AMOUNT_MINOR
    assert hysteresis >= 1 or threshold == MAX_AMOUNT_MINOR
