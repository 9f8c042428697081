"""Evidence is what the text of inputs says, pooled over epochs."""

from hashlib import sha256

import pytest
from tests.evidence import evidence_of, inputs_of, part
from tests.experiments import definition

from tollkeeper.shadow.errors import InputsUnreadable, NotEnoughData
from tollkeeper.shadow.evidence import parse
from tollkeeper.shadow.model import Metric, MetricKind
from tollkeeper.shadow.statistics import ArmStatistics


def test_epochs_are_pooled_and_expected_units_follow_the_weights_of_their_time() -> None:
    text = inputs_of(
        [part(0, 100, 10), part(1, 100, 20), part(0, 20, 1, epoch=2), part(1, 80, 9, epoch=2)],
        weights=[(0.5, 0.5), (0.2, 0.8)],
    )
    evidence = parse(text)

    assert (100 + 20, 180) == tuple(arm.statistics.units for arm in evidence.primary)
    assert ArmStatistics.of_successes(180, 29) == evidence.primary[1].statistics
    assert (120.0, 180.0) == pytest.approx(evidence.expected)
    assert 300 == evidence.counted
    assert sha256(text.encode()).digest() == evidence.digest


def test_sums_beyond_64_bits_are_read_exactly() -> None:
    huge = ArmStatistics(units=10**9, total=10**24, squares=10**39 + 1)
    metric = Metric(name="revenue", kind=MetricKind.CONTINUOUS)
    text = inputs_of([part(0, 1, 1)], definition=definition(metrics=(metric,)))
    text = text.replace('"units":1,"total":1000000,"squares":1000000000000', (
        f'"units":{huge.units},"total":{huge.total},"squares":{huge.squares}'
    ))  # fmt: skip

    assert huge == parse(text).primary[0].statistics


def test_an_experiment_without_units_has_empty_arms() -> None:
    evidence = parse(inputs_of([]))

    assert (0, 0, (0.0, 0.0)) == (evidence.counted, evidence.exposed, evidence.expected)
    assert (0.5, 0.5) == pytest.approx(evidence.p_best)


def test_looks_that_are_due_follow_from_counted_units_up_to_the_plan() -> None:
    due = [evidence_of((units, 0), (0, 0)).looks_due for units in (0, 199, 200, 1_999, 5_000)]

    assert [0, 0, 1, 9, 10] == due


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ('"format":1', '"format":2'),
        ('"format":1,', ""),
        ('"variant":0', '"variant":2'),
        ('"metric":0', '"metric":1'),
        ('"epoch":1,"variant"', '"epoch":7,"variant"'),
        ('"weights":[0.5,0.5]', '"weights":[1.0]'),
        ('"units":10', '"units":"ten"'),
        ("{", "["),
    ],
)
def test_inputs_of_another_shape_are_refused(found: str, wanted: str) -> None:
    text = inputs_of([part(0, 10, 1)])

    assert found in text
    with pytest.raises(InputsUnreadable):
        parse(text.replace(found, wanted))


def test_a_posterior_that_is_not_proper_is_refused_with_its_reason() -> None:
    metric = Metric(name="latency", kind=MetricKind.CONTINUOUS)
    evidence = parse(inputs_of([part(0, 2, 1)], definition=definition(metrics=(metric,))))

    with pytest.raises(NotEnoughData, match="4 units"):
        _ = evidence.p_best
