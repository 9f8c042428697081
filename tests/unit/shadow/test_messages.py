"""Bodies become definitions, changes, units and outcomes; faults name the field."""

from datetime import UTC, datetime

import msgspec
import pytest

from tollkeeper.kernel.ids import TenantId
from tollkeeper.shadow.errors import DefinitionInvalid
from tollkeeper.shadow.messages import (
    ChangeBody,
    ExperimentBody,
    change_of,
    definition_of,
    redefined,
)
from tollkeeper.shadow.model import (
    Experiment,
    ExperimentId,
    ExperimentState,
    OutcomeStatus,
    Recorded,
)
from tollkeeper.shadow.outcome_messages import (
    AssignmentBody,
    OutcomeBody,
    OutcomeView,
    outcome_view,
    outcomes_of,
    units_of,
)
from tollkeeper.shadow.views import experiment_view
from tollkeeper.web.body import decode_body
from tollkeeper.web.errors import RequestInvalid

NOW = datetime(2026, 1, 2, tzinfo=UTC)
PLAIN = {
    "experiment_id": "checkout",
    "variants": [{"name": "control"}, {"name": "new"}],
    "metrics": [{"name": "purchase", "kind": "binary"}],
}


def body_of(**more: object) -> ExperimentBody:
    return msgspec.convert({**PLAIN, **more}, ExperimentBody)


def change(**members: object) -> ChangeBody:
    return msgspec.convert(members, ChangeBody)


def draft(**more: object) -> Experiment:
    return Experiment(
        experiment_no=1, experiment_id=ExperimentId("checkout"), tenant_id=TenantId("acme"),
        definition=definition_of(body_of(**more)), state=ExperimentState.DRAFT, version=7,
        created_at=NOW,
    )  # fmt: skip


def units(text: str) -> list[object]:
    body = decode_body(msgspec.json.Decoder(AssignmentBody), text.encode())
    return list(units_of(body, NOW))


def outcomes(text: str) -> list[object]:
    body = decode_body(msgspec.json.Decoder(OutcomeBody), text.encode())
    return list(outcomes_of(body, NOW))


def faults(error: pytest.ExceptionInfo[RequestInvalid]) -> list[str]:
    return [each.field for each in error.value.errors]


def test_what_is_left_out_has_its_default() -> None:
    definition = definition_of(body_of())

    assert (0.5, 0.5) == definition.weights
    assert ("control", 50) == (definition.control, definition.looks)
    assert "max" == experiment_view(draft()).metrics[0].per_unit
    assert 3 == definition_of(body_of(units=3)).looks


def test_a_profile_that_plans_no_looks_has_none() -> None:
    assert definition_of(body_of(profile="as-specified@1")).looks is None
    assert definition_of(body_of(looks=None)).looks is None


def test_weights_are_of_all_variants_or_of_none() -> None:
    with pytest.raises(DefinitionInvalid, match="variants must all have a weight"):
        definition_of(body_of(variants=[{"name": "a", "weight": 0.5}, {"name": "b"}]))
    weights = [{"name": "a", "weight": 0.5}, {"name": "b", "weight": 0.4}]
    with pytest.raises(DefinitionInvalid, match=r"sum to 1, not to 0\.9"):
        definition_of(body_of(variants=weights))


def test_a_change_keeps_what_it_does_not_name() -> None:
    now = draft(holdout={"group": "all", "share": 0.1}, margin=0.1).definition
    changed = redefined(change(units=500, holdout=None), now)

    assert (500, 0.1, None) == (changed.units, changed.margin, changed.holdout)
    assert changed == redefined(change(units=500, holdout=None), changed)


def test_new_variants_without_the_control_have_their_first_as_control() -> None:
    now = draft().definition
    names = [{"name": "old"}, {"name": "control"}]

    assert "control" == redefined(change(variants=names), now).control
    assert "a" == redefined(change(variants=[{"name": "a"}, {"name": "b"}]), now).control


def test_a_change_of_the_definition_is_of_the_version_that_was_read() -> None:
    asked = change_of(change(state="running", margin=0.2), draft())

    assert (ExperimentState.RUNNING, 7) == (asked.state, asked.version)
    assert asked.definition is not None
    assert 0.2 == asked.definition.margin
    assert change_of(change(weights={"a": 1.0}), None).definition is None


def test_a_unit_or_a_list_of_them() -> None:
    assert 1 == len(units('{"unit_id":"u","attributes":{"plan":"4111 1111 1111 1111"}}'))
    assert b"4111" not in msgspec.json.encode(
        units('{"unit_id":"u","attributes":{"plan":"4111 1111 1111 1111"}}')[0]
    )
    assert 2 == len(units('{"units":[{"unit_id":"u"},{"unit_id":"v"}]}'))
    assert [] == units('{"units":[]}')


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("{}", "unit_id"),
        ('{"unit_id":"u","units":[]}', "units"),
        ('{"units":[{"unit_id":"u"},{"unit_id":"\\u0000"}]}', "units[1].unit_id"),
        ('{"unit_id":"u","exposed_at":"2026-01-02T00:00:06Z"}', "exposed_at"),
        ('{"unit_id":"u","exposed_at":"2026-01-02T00:00:00"}', "exposed_at"),
        ('{"unit_id":"u","attributes":{"a":{}}}', "attributes[...]"),
        ('{"unit_id":"u","attributes":{"a":"\\u0000"}}', "attributes"),
        ('{"unit_id":"u","epoch":0}', "epoch"),
        ('{"unit_id":"u","unit_id":"v"}', "unit_id"),
        ('{"unit_id":"u","attributes":{"a":1,"a":2}}', "a"),
    ],
)
def test_a_fault_of_a_unit_is_named(text: str, field: str) -> None:
    with pytest.raises(RequestInvalid) as caught:
        units(text)

    assert [field] == faults(caught)


def test_an_outcome_or_a_list_of_them() -> None:
    one = '{"experiment_id":"e","unit_id":"u","outcome_id":"o"%s}'
    (plain,), (exact,) = outcomes(one % ""), outcomes(one % ',"value":0.1')

    assert [1_000_000, 100_000] == [each.value_micro for each in (plain, exact)]  # type: ignore[attr-defined]
    pair = ",".join((one % "", one % ',"value":0.1'))
    assert [plain, exact] == outcomes(f'{{"outcomes":[{pair}]}}')


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("{}", "experiment_id"),
        ('{"experiment_id":"e"}', "unit_id"),
        ('{"experiment_id":"e","unit_id":"u"}', "outcome_id"),
        ('{"experiment_id":"a/b","unit_id":"u","outcome_id":"o"}', "experiment_id"),
        ('{"unit_id":"u","outcomes":[]}', "outcomes"),
        ('{"experiment_id":"e","unit_id":"u","outcome_id":"o","value":"1"}', "value"),
        ('{"experiment_id":"e","unit_id":"u","outcome_id":"o","value":null}', "value"),
        ('{"experiment_id":"e","unit_id":"u","outcome_id":"o","value":0.0000001}', "value"),
        ('{"experiment_id":"e","unit_id":"u","outcome_id":"o","value":1,"value":1}', "value"),
        ('{"outcomes":[{"experiment_id":"e","unit_id":"u"}]}', "outcomes[0].outcome_id"),
    ],
)
def test_a_fault_of_an_outcome_is_named(text: str, field: str) -> None:
    with pytest.raises(RequestInvalid) as caught:
        outcomes(text)

    assert [field] == faults(caught)


def test_every_status_of_an_outcome_has_its_name() -> None:
    shown = [outcome_view(Recorded(status=status, is_new=False)) for status in OutcomeStatus]
    read = [msgspec.json.decode(msgspec.json.encode(each), type=OutcomeView) for each in shown]

    assert shown == read
