"""The demo's workload: the same every time, with refusals and retries in it."""

import random
from itertools import pairwise

from tollkeeper.demo import SEED, generate_workload


def test_the_same_seed_is_the_same_workload() -> None:
    one, two = (generate_workload(random.Random(SEED), requests=500, run="x") for _ in range(2))

    assert one == two
    assert len(one.usage) == 500
    assert all(usage.cost > 0 for usage in one.usage)
    assert all(amount > 0 for amount in one.topups)


def test_most_accounts_can_pay_and_some_run_dry() -> None:
    workload = generate_workload(random.Random(SEED), requests=20_000, run="x")
    demand = [0] * len(workload.account_ids)
    for usage in workload.usage:
        demand[usage.account] += 0 if usage.is_retry else usage.cost
    dry = [
        number
        for number, (needed, paid) in enumerate(zip(demand, workload.topups, strict=True))
        if needed > paid
    ]

    assert dry == list(range(1, 200, 10))
    assert sum(usage.is_retry for usage in workload.usage) > 200
    assert sum(usage.account == 0 for usage in workload.usage) > 2_500


def test_a_retry_repeats_the_request_before_it() -> None:
    usage = generate_workload(random.Random(SEED), requests=5_000, run="x").usage
    pairs = [(before, after) for before, after in pairwise(usage) if after.is_retry]

    assert pairs
    assert not usage[0].is_retry
    assert all(before[:2] == after[:2] for before, after in pairs)
