"""A decision is the same bytes for the same inputs, and whoever makes it anew sees any change."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import msgspec
import pytest
from tests.evidence import inputs_of, part
from tests.experiments import definition

from tollkeeper.shadow.decision import (
    chain_hash,
    code_version,
    decide,
    recompute,
    rounded,
)
from tollkeeper.shadow.errors import InputsUnreadable, ProfileUnknown
from tollkeeper.shadow.model import Adaptive, Decision, Verdict

CODE = code_version(tollkeeper="0.1.0", numpy="2.4.6", scipy="1.17.1")
MOMENT = datetime(2026, 1, 1, 12, 30, 0, 123_456, tzinfo=UTC)
GOOD = inputs_of([part(0, 600, 60), part(1, 600, 120)])


def decision_of(**changes: object) -> Decision:
    """Return a decision as the database would keep it."""
    made = decide(GOOD, look=6, kind="look", seed=7, code=CODE)
    terms: dict[str, object] = {
        "decision_no": 3, "experiment_no": 1, "sequence": 2, "kind": "look", "look": 6,
        "decided_at": MOMENT, "as_of": MOMENT, "expires_at": MOMENT + timedelta(days=1),
        "verdict": made.verdict, "variant_no": made.variant_no, "seed": 7, "code": CODE,
        "input_digest": sha256(GOOD.encode()).digest(), "inputs": GOOD,
        "document": made.document, "prev_hash": b"\1" * 32, "hash": b"", **changes,
    }  # fmt: skip
    decision = Decision(**terms)  # type: ignore[arg-type]  # tests say what they mean
    if "hash" in changes:
        return decision
    return msgspec.structs.replace(decision, hash=chain_hash(decision))


def test_a_document_names_verdict_candidate_conditions_figures_and_rates() -> None:
    made = decide(GOOD, look=6, kind="look", seed=7, code=CODE)
    document = json.loads(made.document)

    assert (Verdict.DEPLOY, 1) == (made.verdict, made.variant_no)
    assert ("deploy", "b", "default@1", 6) == (
        document["verdict"], document["candidate"], document["profile"], document["look"]
    )  # fmt: skip
    assert sha256(GOOD.encode()).hexdigest() == document["inputs_sha256"]
    assert {True} == {each["holds"] for each in document["conditions"]}
    assert [0.1, 0.2] == [each["mean"] for each in document["arms"]]
    assert document["arms"][1]["probability_best"] > 0.99
    assert document["rates"]["false_deploy"]["runs"] >= 2_000
    assert document["weights_next"] is None
    assert json.dumps(
        document, ensure_ascii=False, sort_keys=True, separators=(",", ":")
    ) == made.document  # fmt: skip


def test_another_process_writes_the_same_bytes() -> None:
    script = (
        "import sys\n"
        "from tollkeeper.shadow.decision import decide\n"
        "made = decide(sys.stdin.read(), look=6, kind='look', seed=7, code=sys.argv[1])\n"
        "sys.stdout.buffer.write(made.document.encode())\n"
    )
    other = subprocess.run(
        [sys.executable, "-c", script, CODE], input=GOOD.encode(), capture_output=True, check=True
    )

    assert decide(GOOD, look=6, kind="look", seed=7, code=CODE).document == other.stdout.decode()


def test_another_seed_changes_the_draws_and_nothing_else() -> None:
    one, other = (
        json.loads(decide(GOOD, look=6, kind="look", seed=seed, code=CODE).document)
        for seed in (0, -1)
    )
    changed = [name for name in one if one[name] != other[name]]

    assert ["conditions", "seed"] == changed
    assert ["cross_check"] == [
        before["name"]
        for before, after in zip(one["conditions"], other["conditions"], strict=True)
        if before != after
    ]


def test_a_decision_that_was_not_touched_matches() -> None:
    assert () == recompute(decision_of()).differences
    assert recompute(decision_of()).matches


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"inputs": GOOD.replace('"units":600', '"units":601', 1)}, "another SHA-256"),
        ({"hash": b"\2" * 32}, "the hash is not that"),
        ({"verdict": Verdict.HOLD}, "the verdict is deploy, and hold is kept"),
        ({"variant_no": 0}, "another variant"),
        ({"document": "{}"}, "the document says otherwise of"),
        ({"document": "no JSON"}, "the document is not JSON"),
        ({"document": "[]"}, "the document is not an object"),
        ({"seed": 8}, "the document says otherwise of conditions, seed"),
        ({"code": "tollkeeper 0.0.0"}, "the document says otherwise of code"),
        ({"inputs": "no JSON", "input_digest": sha256(b"no JSON").digest()}, "cannot be read"),
    ],
)
def test_whoever_makes_it_anew_sees_what_was_changed(
    changes: dict[str, object], difference: str
) -> None:
    found = recompute(decision_of(**changes))

    assert not found.matches
    assert [each for each in found.differences if difference in each]


def test_a_document_that_is_only_written_otherwise_differs() -> None:
    kept = decision_of().document
    found = recompute(decision_of(document=kept + " "))

    assert ("the document is written otherwise",) == found.differences


def test_an_adaptive_experiment_goes_on_with_weights_that_follow_the_evidence() -> None:
    wanted = definition(adaptive=Adaptive(floor=0.05), units=10_000)
    text = inputs_of([part(0, 2_000, 200), part(1, 2_000, 240)], definition=wanted)
    early = inputs_of([part(0, 99, 1), part(1, 99, 40)], definition=wanted)
    weights = decide(text, look=4, kind="look", seed=0, code=CODE).weights_next

    assert weights is not None
    assert 0.05 <= weights[0] < 0.5 < weights[1]
    assert 1.0 == pytest.approx(sum(weights), abs=1e-12)
    assert (0.5, 0.5) == decide(early, look=0, kind="look", seed=0, code=CODE).weights_next


def test_inputs_or_a_profile_that_nobody_knows_are_refused() -> None:
    with pytest.raises(InputsUnreadable):
        decide("{}", look=1, kind="look", seed=0, code=CODE)
    unknown = inputs_of([], definition=definition(profile="mine@1"))
    with pytest.raises(ProfileUnknown):
        decide(unknown, look=1, kind="look", seed=0, code=CODE)


@pytest.mark.parametrize(
    ("value", "scale", "expected"),
    [
        (0.12345678912345, 1.0, 0.123456789),
        (1e-14, 1.0, 0.0),
        (-1e-14, 1.0, 0.0),
        (1e-14, 1e-14, 1e-14),
        (123456789.123456, 1.0, 123456789.1),
        (0.0, 0.0, 0.0),
    ],
)
def test_numbers_keep_ten_digits_of_their_scale(
    value: float, scale: float, expected: float
) -> None:
    assert expected == rounded(value, scale)
