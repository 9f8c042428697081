"""Arms, conditions and rates as a person reads them."""

import pytest

from tollkeeper.shadow.tables import (
    ArmItem,
    ConditionItem,
    DecisionDocument,
    RateItem,
    RatesItem,
    arm_name,
    arm_rows,
    condition_rows,
    document_of,
    probability_text,
    rate_text,
    value_text,
    why_text,
)

HELD = ConditionItem(name="units_per_arm", required="100 in every arm", holds=True, reason="812")
FAILED = ConditionItem(name="guardrail:p_99", required="no harm", holds=False, reason="no data")


@pytest.mark.parametrize(
    ("probability", "text"),
    [
        (None, "-"), (0.0, "0.00%"), (1e-9, "<0.01%"), (0.5, "50.00%"), (1 - 1e-9, ">99.99%"),
        (1.0, "100.00%"),
    ],
)  # fmt: skip
def test_what_is_not_certain_does_not_read_so(probability: float | None, text: str) -> None:
    assert text == probability_text(probability)


def test_values_of_a_binary_metric_are_shares() -> None:
    assert ("12.34%", "12,345", "0.1234", "-") == (
        value_text(0.1234, "binary"),
        value_text(12_345.4, "continuous"),
        value_text(0.1234, None),
        value_text(None, "binary"),
    )


def test_signs_are_words_where_there_are_no_signs() -> None:
    plain, tones = condition_rows((HELD, FAILED), is_plain=True)
    signs, _ = condition_rows((HELD, FAILED), is_plain=False, is_whole=True)

    assert [("yes", "units per arm", "812"),
            ("NO", "guardrail:p_99", "no data; required: no harm")] == plain  # fmt: skip
    assert ["", "bad"] == tones
    assert [("✓", "812; required: 100 in every arm"), ("✗", "no data; required: no harm")] == [
        (row[0], row[2]) for row in signs
    ]


def test_a_decision_that_holds_names_what_is_missing() -> None:
    held = DecisionDocument(verdict="hold", why="w", profile="p", conditions=(HELD, *[FAILED] * 5))
    deployed = DecisionDocument(verdict="deploy", why="all holds", profile="p", conditions=(HELD,))

    assert "not yet: guardrail:p_99, guardrail:p_99, guardrail:p_99 and 2 more" == why_text(held)
    assert "all holds" == why_text(deployed)


def test_the_control_is_named_once() -> None:
    arms = (ArmItem(variant="control", is_control=True), ArmItem(variant="old", is_control=True))

    assert ["control", "old (control)"] == [arm_name(arm) for arm in arms]
    rows, tones = arm_rows((ArmItem(variant="new", units=1_000),), kind="binary", candidate="new")
    assert (["good"], ("new", "1,000", "-", "-", "-", "-", "-", "-")) == (tones, rows[0])


def test_how_often_a_profile_errs_is_said_with_its_interval() -> None:
    rate = RateItem(rate=0.031, interval=(0.024, 0.04), runs=2_000, setting="rate 0.1")

    assert (
        "default@1 deploys 3.1% of variants that are no better (2.4% to 4.0%, "
        "2,000 simulated experiments: rate 0.1)"
    ) == rate_text(RatesItem(false_deploy=rate), "default@1")
    assert "nobody has measured" in rate_text(RatesItem(), "default@1")


def test_a_document_of_another_format_is_none() -> None:
    whole = {"verdict": "hold", "why": "w", "profile": "p", "something": [1]}

    assert DecisionDocument(verdict="hold", why="w", profile="p") == document_of(whole)
    assert None is document_of({"verdict": "hold"})
    assert None is document_of("{")
