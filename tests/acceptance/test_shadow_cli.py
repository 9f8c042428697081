"""`tollkeeper shadow ...` against a running service, as an operator meets it."""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from uuid import uuid4

import pytest
from tests.acceptance.conftest import Finished, ShadowService, execute, running_shadow
from tests.conftest import Databases

BINARY = ("--variant", "old", "--variant", "new", "--metric", "sale:binary")
PLAN = ("--units", "1000", "--looks", "2")
RATES = {"old": 0.10, "new": 0.30}


@pytest.fixture(scope="module")
def shadow(
    databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ShadowService]:
    with (
        databases.fresh("shadow") as shadow_dsn,
        databases.fresh("access") as access_dsn,
        running_shadow(shadow_dsn, access_dsn, tmp_path_factory.mktemp("cli")) as service,
    ):
        yield service


@pytest.fixture
def name() -> str:
    return f"test-{uuid4()}"


def done(finished: Finished) -> Finished:
    assert 0 == finished.code, finished.err
    return finished


def assigned(
    shadow: ShadowService, name: str, units: Sequence[str], folder: Path
) -> dict[str, str]:
    """Assign units from a file, and return the variants that they got."""
    file = folder / "units.txt"
    file.write_text("\n".join(units))
    out = done(shadow.run("shadow", "assign", name, "--file", str(file), "--json")).out
    found = [json.loads(line)["assignment"] for line in out.splitlines()]
    assert list(units) == [each["unit_id"] for each in found]
    return {each["unit_id"]: each["variant"] for each in found}


def outcomes_in(file: Path, variants: dict[str, str], rates: dict[str, float]) -> Path:
    """Write an outcome of each unit into a file."""
    generator = random.Random(0)
    lines = [
        f"{unit},{int(generator.random() < rates[variant])}\n" for unit, variant in variants.items()
    ]
    file.write_text("unit_id,value\n" + "".join(lines))
    return file


@pytest.fixture(scope="module")
def proven(shadow: ShadowService, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An experiment whose second look says deploy, or the first one already."""
    name, folder = f"proven-{uuid4()}", tmp_path_factory.mktemp("proven")
    done(shadow.run("shadow", "create", name, *BINARY, *PLAN, "--start"))
    variants = assigned(shadow, name, [f"user-{number}" for number in range(1_000)], folder)
    file = outcomes_in(folder / "outcomes.csv", variants, RATES)
    done(shadow.run("shadow", "outcome", name, "--file", str(file)))
    done(shadow.run("shadow", "analyse", name))  # takes the look that is due
    return name


def test_an_experiment_from_its_definition_to_its_rollback(
    shadow: ShadowService, name: str, tmp_path: Path
) -> None:
    created = done(shadow.run("shadow", "create", name, *BINARY, *PLAN, "--start")).out
    again = done(shadow.run("shadow", "create", name, *BINARY, *PLAN, "--start")).out

    assert "1,000 units, 2 looks" in created
    assert "it was there already" in again
    assert "running" in done(shadow.run("shadow", "show", name)).out

    variants = assigned(shadow, name, [f"user-{number}" for number in range(1_000)], tmp_path)
    file = outcomes_in(tmp_path / "outcomes.csv", variants, RATES)
    first = done(shadow.run("shadow", "outcome", name, "--file", str(file), "--json")).json()
    second = done(shadow.run("shadow", "outcome", name, "--file", str(file), "--json")).json()

    assert (1_000, {"counted": 1_000}, 0) == (
        first["outcomes"], first["statuses"], first["duplicates"],
    )  # fmt: skip
    assert ({"counted": 1_000}, 1_000) == (second["statuses"], second["duplicates"])

    shown = done(shadow.run("shadow", "analyse", name)).out
    assert "1,000 of 1,000 planned units" in shown
    assert "deploy: new may be deployed: every condition holds" in shown
    listed = done(shadow.run("shadow", "decisions", name, "--json")).json()["items"]
    assert isinstance(listed, list)
    assert "deploy" == listed[-1]["verdict"]

    deployment = done(shadow.run("shadow", "deploy", name, "new", "--json")).json()
    key = str(deployment["deployment_id"])
    explained = done(shadow.run("shadow", "explain", key))

    assert "recomputed: identical, bit for bit" in explained.out
    assert explained.out.count(" yes ") >= 13
    assert key in done(shadow.run("shadow", "deployments", name)).out
    assert (
        "deployed"
        == done(shadow.run("shadow", "assign", name, "user-1", "--json")).json()["status"]
    )

    done(shadow.run("shadow", "rollback", key, "--reason", "sales fell"))
    back = done(shadow.run("shadow", "rollback", key, "--json")).json()
    assert "sales fell" == back["reason"]
    ended = done(shadow.run("shadow", "assign", name, "user-1", "--json")).json()
    assert ("ended", "old") == (ended["status"], ended["variant"])
    assert "(of then: the experiment has ended)" in done(shadow.run("shadow", "analyse", name)).out


def test_what_the_gate_refuses_is_said_condition_by_condition(
    shadow: ShadowService, name: str
) -> None:
    done(shadow.run("shadow", "create", name, *BINARY, "--start"))
    refused = shadow.run("shadow", "deploy", name, "new")
    problem = shadow.run("shadow", "deploy", name, "new", "--json")

    assert (3, "") == (refused.code, refused.out)
    assert "new of " in refused.err
    assert "\n  - no look has been taken yet" in refused.err
    assert 3 == problem.code
    assert "urn:tollkeeper:problem:gate-refused" == problem.problem()["type"]
    assert "Nothing of " in done(shadow.run("shadow", "deployments", name)).err


def test_an_analysis_without_data_says_so(shadow: ShadowService, name: str) -> None:
    done(shadow.run("shadow", "create", name, *BINARY, "--start"))
    shown = done(shadow.run("shadow", "analyse", name))

    assert "0 of 10,000 planned units" in shown.out
    assert "none was taken yet" in shown.out
    assert "at 200 counted units" in shown.out
    assert "Nothing is decided yet" in done(shadow.run("shadow", "decisions", name)).err


def test_watching_ends_with_the_experiment(shadow: ShadowService, name: str) -> None:
    done(shadow.run("shadow", "create", name, *BINARY, "--start"))
    done(shadow.run("shadow", "end", name))

    assert "ended" in done(shadow.run("shadow", "analyse", name, "--watch")).out


def test_explain_finds_what_was_changed_behind_the_service(
    shadow: ShadowService, proven: str
) -> None:
    deployment = done(shadow.run("shadow", "deploy", proven, "new", "--json")).json()
    key = str(deployment["deployment_id"])
    inputs = done(shadow.run("shadow", "explain", key, "--inputs")).out
    number = deployment["decision_no"]
    done(shadow.run("shadow", "explain", key))
    execute(
        shadow.shadow_dsn,
        "ALTER TABLE decisions DISABLE TRIGGER ALL;"
        "UPDATE decisions SET document = replace(document, '\"verdict\"', '\"verdikt\"')"
        f" WHERE decision_no = {number};"
        "ALTER TABLE decisions ENABLE TRIGGER ALL;",
    )
    found = shadow.run("shadow", "explain", key, "--json")
    shown = shadow.run("shadow", "explain", key)

    assert proven == json.loads(inputs)["experiment_id"]
    assert (4, 4) == (found.code, shown.code)
    recomputed = found.json()["recomputed"]
    assert isinstance(recomputed, dict)
    assert recomputed["identical"] is False
    assert [
        "the hash is not that of the decision and the one before it",
        "the document says otherwise of verdict, verdikt",
    ] == recomputed["differences"]
    assert "NOT the same" in shown.out


def test_every_part_of_a_definition_has_an_option(
    shadow: ShadowService, name: str, tmp_path: Path
) -> None:
    options = (
        "--variant", "a=0.2", "--variant", "b=0.8", "--control", "b",
        "--metric", "time:continuous:lower", "--guardrail", "errors:count:lower:0.1",
        "--units", "500", "--looks", "5", "--margin", "0.1", "--profile", "default@1",
        "--adaptive", "--floor", "0.1", "--holdout", f"{name}=0.05", "--namespace",
        f"{name}=0.25:0.5", "--window", "60", "--missing", "zero", "--description", "about it",
        "--tenant", "acme",
    )  # fmt: skip
    made = done(shadow.run("shadow", "create", name, *options, "--json")).json()

    assert {
        "state": "draft", "tenant_id": "acme", "control": "b", "units": 500, "looks": 5,
        "margin": 0.1, "profile": "default@1", "description": "about it",
        "variants": [{"name": "a", "weight": 0.2}, {"name": "b", "weight": 0.8}],
        "adaptive": {"floor": 0.1, "top_two": False, "discount": 1.0},
        "holdout": {"group": name, "share": 0.05},
        "namespace": {"name": name, "start": 0.25, "end": 0.5},
    }.items() <= made.items()  # fmt: skip
    assert [
        ("time", "continuous", "lower", "zero", 60), ("errors", "count", "lower", "exclude", 60),
    ] == [
        tuple(each[key] for key in ("name", "kind", "direction", "missing", "window_s"))
        for each in made["metrics"]  # type: ignore[attr-defined]  # JSON
    ]  # fmt: skip
    shown = done(shadow.run("shadow", "show", name)).out
    assert "weights follow the evidence, 10.0% each at least" in shown
    assert "guardrail, 10.0% tolerated" in shown

    file = tmp_path / "definition.json"
    file.write_text(
        json.dumps({"variants": [{"name": "x"}, {"name": "y"}], "metrics": made["metrics"]})
    )
    named = f"{name}-file"
    same = done(shadow.run("shadow", "create", named, "--file", str(file), "--json")).json()
    assert made["metrics"] == same["metrics"]


def test_states_and_weights_are_changed(shadow: ShadowService, name: str) -> None:
    done(shadow.run("shadow", "create", name, *BINARY))

    assert 3 == shadow.run("shadow", "assign", name, "user-1").code
    assert "running" in done(shadow.run("shadow", "start", name)).out
    weighed = done(shadow.run("shadow", "weights", name, "old=0.25", "new=0.75", "--json")).json()
    assert (2, 0.75) == (weighed["epoch"], weighed["variants"][1]["weight"])  # type: ignore[index]
    assert "paused" in done(shadow.run("shadow", "pause", name)).out
    paused = done(shadow.run("shadow", "assign", name, "user-1"))
    assert "nobody new is assigned" in paused.out
    assert "ended" in done(shadow.run("shadow", "end", name)).out
    back = shadow.run("shadow", "start", name)
    assert (3, True) == (back.code, "cannot become running" in back.err)


def test_the_list_has_pages(shadow: ShadowService, name: str) -> None:
    for number in range(3):
        done(shadow.run("shadow", "create", f"{name}-{number}", *BINARY))
    first = done(shadow.run("shadow", "list", "--state", "draft", "--limit", "2"))
    cursor = first.out.split("--after ")[1].split()[0]
    second = done(shadow.run("shadow", "list", "--state", "draft", "--after", cursor))
    everything = done(shadow.run("shadow", "list", "--all", "--json", "--limit", "1")).out
    page = done(shadow.run("shadow", "list", "--limit", "1", "--json")).json()

    assert "UTC" in first.out
    assert f"{name}-2" in first.out + second.out
    ids = [json.loads(line)["experiment_id"] for line in everything.splitlines()]
    assert [f"{name}-{number}" for number in range(3)] == [each for each in ids if name in each]
    assert len(ids) == len(set(ids))
    assert isinstance(page["next"], str)


def test_one_outcome_is_recorded_once(shadow: ShadowService, name: str) -> None:
    done(shadow.run("shadow", "create", name, *BINARY, "--start"))
    first = done(shadow.run("shadow", "outcome", name, "user-1", "--id", "order-1"))
    done(shadow.run("shadow", "assign", name, "user-1", "--attributes", '{"plan": "pro"}'))
    again = done(shadow.run("shadow", "outcome", name, "user-1", "--id", "order-1"))
    minted = done(shadow.run("shadow", "outcome", name, "user-1", "--value", "0", "--json")).json()
    other = shadow.run("shadow", "outcome", name, "user-1", "--id", "order-1", "--value", "0")

    assert "waiting: the unit is not assigned; counted when it is" in first.out
    assert "it was recorded before: this changed nothing" in again.out
    assert ("counted", False) == (minted["status"], minted["duplicate"])
    assert minted["outcome_id"]
    assert (3, True) == (other.code, "send another outcome_id" in other.err)


def test_a_file_with_a_malformed_line_is_not_sent(
    shadow: ShadowService, name: str, tmp_path: Path
) -> None:
    done(shadow.run("shadow", "create", name, *BINARY, "--start"))
    done(shadow.run("shadow", "assign", name, "u"))
    file = tmp_path / "outcomes.csv"
    file.write_text("unit_id,value\nu,1\nu,many\n")
    stopped = shadow.run("shadow", "outcome", name, "--file", str(file))
    skipped = done(shadow.run("shadow", "outcome", name, "--file", str(file), "--skip-bad"))

    assert (1, "") == (stopped.code, stopped.out)
    assert "line 3: the value 'many' is not a number" in stopped.err
    assert "nothing was sent" in stopped.err
    assert "0 of these: this changed nothing" in skipped.out
    assert "left out, line 3" in skipped.err


def test_lines_that_the_service_refuses_are_told_and_others_are_kept(
    shadow: ShadowService, name: str, tmp_path: Path
) -> None:
    done(shadow.run("shadow", "create", name, *BINARY, "--start"))
    done(shadow.run("shadow", "assign", name, "u"))
    file = tmp_path / "outcomes.jsonl"
    file.write_text(
        '{"unit_id": "u"}\n{"unit_id": "u", "value": 7}\n'
        '{"unit_id": "u", "experiment_id": "nobody-has-it"}\n'
    )
    finished = shadow.run("shadow", "outcome", name, "--file", str(file))

    assert 3 == finished.code
    assert "refused: value-invalid         1" in finished.out
    assert "refused, line 2: the value of metric sale must be 0 or 1" in finished.err
    assert "refused, line 3: there is no experiment nobody-has-it" in finished.err
    assert "counted                        1" in finished.out


@pytest.mark.parametrize(
    ("code", "words", "arguments"),
    [
        (2, "give at least two", ("create", "x", "--variant", "a", "--metric", "m:binary")),
        (2, "say what decides", ("create", "x", "--variant", "a", "--variant", "b")),
        (2, "give all of them a share", ("create", "x", "--variant", "a=1", *BINARY)),
        (2, "gives a share as a=0.7", ("create", "x", "--variant", "a:0.7", *BINARY)),
        (2, "is not NAME:KIND", ("create", "x", *BINARY[:4], "--metric", "sale")),
        (2, "is not NAME:KIND", ("create", "x", *BINARY, "--guardrail", "a:binary:up")),
        (2, "is not 0 to 1", ("create", "x", *BINARY, "--guardrail", "a:binary:lower:2")),
        (2, "is not GROUP=SHARE", ("create", "x", *BINARY, "--holdout", "all")),
        (2, "is not NAME=START:END", ("create", "x", *BINARY, "--namespace", "n=1")),
        (2, "is of --adaptive", ("create", "x", *BINARY, "--floor", "0.1")),
        (2, "cannot read", ("create", "x", "--file", "/nobody/has/it.json")),
        (2, "and not both", ("create", "x", *BINARY, "--file", "-")),
        (1, "sum to 1", ("create", "x", "--variant", "a=0.1", "--variant", "b=0.1", *BINARY[4:])),
        (1, "no gate profile", ("create", "x", *BINARY, "--profile", "nobody@1")),
        (1, "experiment_id", ("create", "x/y", *BINARY)),
        (3, "there is no experiment", ("show", "nobody-has-it")),
        (3, "there is no experiment", ("start", "nobody-has-it")),
        (3, "there is no experiment", ("analyse", "nobody-has-it")),
        (3, "there is no experiment", ("decisions", "nobody-has-it")),
        (3, "there is no experiment", ("deployments", "nobody-has-it")),
        (3, "there is no experiment", ("assign", "nobody-has-it", "u")),
        (3, "there is no experiment", ("outcome", "nobody-has-it", "u")),
        (3, "there is no experiment", ("deploy", "nobody-has-it", "a")),
        (2, "is not VARIANT=SHARE", ("weights", "x", "a=many")),
        (2, "is not VARIANT=SHARE", ("weights", "x", "a=0.5", "a=0.5")),
        (2, "and not both", ("assign", "x")),
        (2, "is of one unit", ("assign", "x", "a", "b", "--attributes", "{}")),
        (2, "is not a JSON object", ("assign", "x", "a", "--attributes", "[]")),
        (1, "cannot read", ("assign", "x", "--file", "/nobody/has/it")),
        (2, "and not both", ("outcome", "x")),
        (2, "are of one outcome", ("outcome", "x", "--file", "f.csv", "--value", "1")),
        (2, "at most 6 decimals", ("outcome", "x", "u", "--value", "1.2345678")),
        (2, "is not a time with its zone", ("outcome", "x", "u", "--at", "2026-01-01T00:00")),
        (1, "cannot read", ("outcome", "x", "--file", "/nobody/has/it.csv")),
        (3, "there is no deployment", ("explain", "01978a3c-5f00-7abc-8def-0123456789ab")),
        (1, "must be a UUID", ("explain", "yesterday's")),
        (3, "there is no deployment", ("rollback", "01978a3c-5f00-7abc-8def-0123456789ab")),
        (2, "not one of", ("list", "--state", "sleeping")),
    ],
)
def test_wrong_input_is_one_sentence(
    shadow: ShadowService, code: int, words: str, arguments: tuple[str, ...]
) -> None:
    finished = shadow.run("shadow", *arguments)

    assert (code, "") == (finished.code, finished.out)
    assert words in finished.err
    assert "Traceback" not in finished.err


def test_without_a_service_the_command_says_what_to_do(shadow: ShadowService) -> None:
    nowhere = {"TOLLKEEPER_SHADOW_URL": "http://127.0.0.1:1"}
    finished = shadow.run("shadow", "list", environment=nowhere)

    assert 1 == finished.code
    assert "cannot be reached" in finished.err


def test_a_profile_that_errs_often_carries_a_warning(
    shadow: ShadowService, name: str, tmp_path: Path
) -> None:
    done(shadow.run("shadow", "create", name, *BINARY, "--profile", "as-specified@1", "--start"))
    variants = assigned(shadow, name, [f"user-{number}" for number in range(300)], tmp_path)
    file = outcomes_in(tmp_path / "outcomes.csv", variants, RATES)
    done(shadow.run("shadow", "outcome", name, "--file", str(file)))
    shown = done(shadow.run("shadow", "analyse", name)).out

    assert "Conditions now: they decide" not in shown
    assert "use default@1" in shown
    assert "no planned looks" in done(shadow.run("shadow", "show", name)).out


def test_a_report_is_written_whole_or_not_at_all(
    shadow: ShadowService, proven: str, tmp_path: Path
) -> None:
    page, picture = tmp_path / "report.html", tmp_path / "report.png"
    finished = done(
        shadow.run("shadow", "report", proven, "--html", str(page), "--png", str(picture))
    )
    nowhere = shadow.run("shadow", "report", proven, "--html", str(tmp_path / "no" / "r.html"))
    unknown = shadow.run("shadow", "report", "nobody-has-it", "--png", str(tmp_path / "n.png"))

    assert proven in page.read_text(encoding="utf-8")
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")
    assert f"{page}: " in finished.err
    assert (1, True) == (nowhere.code, "cannot write" in nowhere.err)
    assert 3 == unknown.code
    assert {page, picture, tmp_path / "no"} >= set(tmp_path.iterdir()) >= {page, picture}
    for wrong in ((), ("--html", "x", "--png", "x")):
        assert 2 == shadow.run("shadow", "report", proven, *wrong).code
