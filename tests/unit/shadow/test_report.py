"""A report shows every variant and every figure, whatever its name, and loads nothing."""

import builtins
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache

import msgspec
import pytest
from tests.evidence import Part, inputs_of, part
from tests.experiments import definition
from tests.unit.shadow.test_decision import CODE

from tollkeeper.kernel.errors import ConfigurationError
from tollkeeper.shadow.analysis import Analysis, analyse
from tollkeeper.shadow.decision import decide
from tollkeeper.shadow.history import Past, Report, past_of
from tollkeeper.shadow.model import Decision, Definition, Direction, Metric, MetricKind, Variant
from tollkeeper.shadow.page import html_of
from tollkeeper.shadow.pictures import png_of, svgs_of
from tollkeeper.shadow.statistics import ArmStatistics
from tollkeeper.shadow.wording import headline_of, probability_text, promise_of, shortened

NAMES = (
    "control",
    "<script>alert('$x$')</script>",
    "a name that is too long for pictures",
    "日本 🎉",
)
MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
LATENCY = Metric(name="latency", kind=MetricKind.CONTINUOUS, direction=Direction.LOWER)


def variants(names: Sequence[str]) -> tuple[Variant, ...]:
    return tuple(Variant(name=name, weight=1 / len(names)) for name in names)


FOUR = definition(variants=variants(NAMES), control="control", units=4_000)
FIFTY = definition(variants=variants([f"v{no}" for no in range(50)]), control="v3")


def stored(inputs: str, look: int) -> Decision:
    made = decide(inputs, look=look, kind="look", seed=1, code=CODE)
    return Decision(
        decision_no=look, experiment_no=1, sequence=look, kind="look", look=look,
        decided_at=MOMENT + timedelta(hours=look), as_of=MOMENT,
        expires_at=MOMENT + timedelta(days=1), verdict=made.verdict, variant_no=made.variant_no,
        input_digest=b"", inputs=inputs, seed=1, code=CODE, document=made.document, prev_hash=b"",
        hash=b"",
    )  # fmt: skip


def report_of(
    texts: Sequence[str], *, state: str = "running", deployed: str | None = None
) -> Report:
    """Return the report of an experiment that was looked at with each of these inputs."""
    decisions = [stored(text, look) for look, text in enumerate(texts, start=1)]
    analysis = analyse(texts[-1], seed=1, last_look=decisions[-1])
    return Report(analysis=analysis, past=past_of(decisions), state=state, deployed=deployed)


def binary(counts: Sequence[tuple[int, int]], wanted: Definition) -> str:
    parts = [part(no, units, found) for no, (units, found) in enumerate(counts)]
    return inputs_of(parts, definition=wanted)


def latency() -> str:
    parts = [
        Part(statistics=ArmStatistics.of_values([mean * 900_000, mean * 1_100_000] * 300),
             variant=no)
        for no, mean in enumerate((100, 80))
    ]  # fmt: skip
    return inputs_of(parts, definition=definition(metrics=(LATENCY,), profile="as-specified@1"))


REPORTS: Mapping[str, Callable[[], Report]] = {
    "two": lambda: report_of(
        [binary([(600, 60), (600, 120)], definition())], deployed="b", state="ended"
    ),
    "four": lambda: report_of(
        [binary([(n, n // 10 + no) for no in range(4)], FOUR) for n in (100, 400, 900)]
    ),
    "fifty": lambda: report_of([binary([(200, 20 + no) for no in range(50)], FIFTY)]),
    "lower": lambda: report_of([latency()]),
    "nothing": lambda: Report(
        analysis=analyse(
            inputs_of([], definition=definition(metrics=(LATENCY,))), seed=0, last_look=None
        )
    ),
    "no failures": lambda: report_of([binary([(150, 150), (150, 150)], definition())]),
}


@cache
def report(name: str) -> Report:
    return REPORTS[name]()


@cache
def page(name: str) -> str:
    return html_of(report(name))


@pytest.mark.parametrize("name", REPORTS)
def test_a_page_names_every_variant_and_condition_and_escapes_them(name: str) -> None:
    text, analysis = page(name), report(name).analysis

    for arm in analysis.arms:
        escaped = arm.variant.replace("<", "&lt;").replace(">", "&gt;").replace("'", "&#39;")
        assert f'<td class="name">{escaped}' in text
    assert text.count('<td class="mark') == len(analysis.conditions)
    assert "<script" not in text
    assert "nan" not in re.sub(r"[a-z]{2,}nan|nan[a-z]{2,}", "", text.lower())


def test_a_page_loads_nothing_and_its_ids_do_not_collide() -> None:
    text = page("four")
    ids = re.findall(r' id="([^"]+)"', text)

    assert "default-src 'none'" in text
    assert [] == re.findall(r'(?:src|(?<!xlink:)href)="(?!#)[^"]*"|@import|url\((?!#)', text)
    assert len(set(ids)) == len(ids)
    assert "#010203" not in text  # all ink is the text's colour, which is light on dark


def test_a_picture_is_the_same_bytes_each_time() -> None:
    picture = png_of(report("four"))

    assert picture.startswith(b"\x89PNG")
    assert picture == png_of(report("four"))


def test_an_experiment_without_data_has_its_picture() -> None:
    assert png_of(report("nothing")).startswith(b"\x89PNG")


def test_pictures_show_the_control_and_the_variants_that_are_most_probably_best() -> None:
    assert (3, 45, 46, 47, 48, 49) == report("fifty").shown
    assert "44 more are in the table" in page("fifty")
    densities = svgs_of(report("fifty"))["densities"]
    assert "v3 (control)" in densities
    assert ">v49<" in densities


def test_a_picture_names_what_begins_with_an_underscore_and_writes_lifts_out() -> None:
    wanted = definition(variants=variants(["_old", "_new"]), control="_old")
    pictures = svgs_of(report_of([binary([(20, 1), (20, 18)], wanted)]))

    for picture in pictures.values():
        assert "_new<" in picture
        assert "e+03" not in picture


def test_the_course_of_a_variant_has_each_look_and_the_present() -> None:
    whole = report("four")
    later = msgspec.structs.replace(whole, past=whole.past[:-1])

    assert [400, 1_600, 3_600] == [point.units for point in whole.course(1)]
    assert [400, 1_600, 3_600] == [point.units for point in later.course(1)]


def test_the_documents_of_the_api_make_the_same_page() -> None:
    whole = report("four")
    items = [
        {"decision_no": 1, "kind": past.kind, "look": past.look, "decided_at": past.decided_at,
         "verdict": past.verdict, "document": past.document}
        for past in whole.past
    ]  # fmt: skip
    again = Report(
        analysis=msgspec.json.decode(msgspec.json.encode(whole.analysis), type=Analysis),
        past=msgspec.json.decode(msgspec.json.encode(items), type=tuple[Past, ...]),
    )

    assert page("four") == html_of(again)


def test_the_headline_says_what_counts() -> None:
    analysis = report("two").analysis
    assert analysis.last_look is not None
    gone = msgspec.structs.replace(analysis.last_look, is_expired=True)
    expired = msgspec.structs.replace(analysis, last_look=gone)
    deployable = msgspec.structs.replace(report("two"), deployed=None, state="running")
    taken_back = msgspec.structs.replace(report("two"), deployed=None)

    assert ("Deployed: everybody gets b.", "good") == headline_of(report("two"))
    assert ("No look has been taken yet: nothing is decided.", "plain") == headline_of(
        report("nothing")
    )
    assert "has expired" in headline_of(Report(analysis=expired)).text
    assert "rejects" not in headline_of(deployable).text
    assert "may be deployed" not in headline_of(taken_back).text
    assert "conditions do not hold yet" in headline_of(report("four")).text
    assert "of variants that are no better" in promise_of(report("four"))


def test_texts_keep_to_a_line_and_no_probability_is_rounded_to_certainty() -> None:
    assert "a…" == shortened("abc", 2)
    assert "a b" == shortened("a\nb")
    assert ["> 99.99 %", "< 0.01 %", "100.00 %", "0.00 %", "50.00 %"] == [
        probability_text(value) for value in (0.99999, 0.00001, 1.0, 0.0, 0.5)
    ]


def test_without_matplotlib_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *rest)  # type: ignore[arg-type]  # handed through

    monkeypatch.setattr(builtins, "__import__", without)

    with pytest.raises(ConfigurationError, match=re.escape("pip install 'tollkeeper[report]'")):
        png_of(report("two"))
