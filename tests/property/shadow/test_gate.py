"""Whatever the counts: the quick way says what the whole one says, and no byte changes unseen."""

import math
from hashlib import sha256

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.evidence import evidence_of, inputs_of, part
from tests.experiments import definition
from tests.unit.shadow.test_decision import decision_of

from tollkeeper.shadow.decision import recompute
from tollkeeper.shadow.evidence import Evidence
from tollkeeper.shadow.gate import is_deployable, is_hopeless, judge
from tollkeeper.shadow.model import Decision, Variant, Verdict
from tollkeeper.shadow.profiles import AS_SPECIFIED, DEFAULT

KEPT = decision_of()
COVERED = ("inputs", "document", "code", "kind")
"""Texts of a decision that the chain of hashes covers, and so does making it anew."""


@st.composite
def counts(draw: st.DrawFn, arms: int) -> list[tuple[int, int]]:
    """Units and successes; arms are of like size, so that no ratio hides the rest."""
    size = draw(st.integers(0, 6_000))
    pairs = []
    for _ in range(arms):
        units = max(0, size + draw(st.integers(-40, 40)))
        rate = draw(st.sampled_from((0.0, 0.05, 0.1, 0.12, 0.15, 0.2, 0.5, 1.0)))
        noise = draw(st.integers(-10, 10))
        pairs.append((units, min(units, max(0, round(units * rate) + noise))))
    return pairs


def evidence(pairs: list[tuple[int, int]]) -> Evidence:
    share = 1 / len(pairs)
    names = "abcdefgh"[: len(pairs)]
    wanted = definition(
        variants=tuple(Variant(name=name, weight=share) for name in names),
        units=10_000,
        looks=50,
    )
    return evidence_of(*pairs, definition=wanted)


@given(st.integers(2, 4).flatmap(counts), st.sampled_from((DEFAULT, AS_SPECIFIED)))
@settings(max_examples=120)
def test_the_quick_way_says_what_the_whole_one_says(pairs: list[tuple[int, int]], profile) -> None:  # type: ignore[no-untyped-def]
    found = evidence(pairs)
    look = found.looks_due
    judgement = judge(found, profile, look)

    assert (judgement.verdict is Verdict.DEPLOY) == is_deployable(evidence(pairs), profile, look)
    if look < 50:
        assert (judgement.verdict is Verdict.REJECT) == is_hopeless(evidence(pairs), profile, look)
    assert all(each.figure is None or math.isfinite(each.figure) for each in judgement.conditions)
    assert all(each.reason and each.required for each in judgement.conditions)


@given(st.integers(2, 3).flatmap(counts))
@settings(max_examples=80)
def test_what_the_default_lets_through_the_specified_conditions_let_through(
    pairs: list[tuple[int, int]],
) -> None:
    found = evidence(pairs)
    if judge(found, DEFAULT, found.looks_due).verdict is Verdict.DEPLOY:
        assert judge(found, AS_SPECIFIED, found.looks_due).verdict is Verdict.DEPLOY


@given(st.integers(200, 3_000), st.integers(0, 200), st.integers(1, 30))
@settings(max_examples=60)
def test_more_successes_of_the_candidate_never_close_the_gate(
    units: int, extra: int, more: int
) -> None:
    base = units // 5
    before = evidence([(units, base), (units, min(units, base + extra))])
    after = evidence([(units, base), (units, min(units, base + extra + more))])
    if judge(before, DEFAULT, before.looks_due).verdict is Verdict.DEPLOY:
        assert judge(after, DEFAULT, after.looks_due).verdict is Verdict.DEPLOY


@given(st.data(), st.sampled_from(COVERED))
@settings(max_examples=60)
def test_no_byte_of_a_decision_changes_unseen(data: st.DataObject, field: str) -> None:
    text: str = getattr(KEPT, field)
    place = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.sampled_from("09azAZ ,}é").filter(lambda each: each != text[place]))
    changed = text[:place] + letter + text[place + 1 :]

    assert not recompute(_with(field, changed)).matches


def _with(field: str, text: str) -> Decision:
    terms = {name: getattr(KEPT, name) for name in KEPT.__struct_fields__}
    terms[field] = text
    if field == "inputs":  # whoever can change a text can change its digest, too
        terms["input_digest"] = sha256(text.encode()).digest()
    return Decision(**terms)


def test_the_decision_that_is_changed_matches_when_it_is_not() -> None:
    assert recompute(KEPT).matches
    assert inputs_of([part(0, 600, 60), part(1, 600, 120)]) == KEPT.inputs
