"""Files of outcomes and units: every line is one, blank, or named with what is wrong."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from io import BytesIO

import pytest

from tollkeeper.shadow.unit_file import (
    LINE_LIMIT_BYTES,
    BadLine,
    OutcomeRow,
    read_outcomes,
    read_units,
    survey_outcomes,
)

CSV = b"""unit_id,metric,value,occurred_at
user-1,,1,

"user, 2",latency,12.345678,2026-01-02T03:04:05Z
user-3, latency , 1e3 ,2026-01-02T03:04:05+01:00
"""


def rows_of(text: bytes) -> list[dict[str, object]]:
    file = BytesIO(text)
    survey = survey_outcomes(file, "checkout")
    assert () == survey.bad
    found = list(read_outcomes(file, "checkout", survey.digest))
    assert survey.rows == len(found)
    return [dict(row.fields) for row in found if isinstance(row, OutcomeRow)]


def fault_of(text: bytes) -> str:
    survey = survey_outcomes(BytesIO(text), "checkout")
    assert 1 == survey.bad_count
    return f"{survey.bad[0].line}: {survey.bad[0].problem}"


def test_a_csv_file_says_outcomes() -> None:
    first, second, third = rows_of(CSV)

    assert {"experiment_id": "checkout", "unit_id": "user-1", "value": Decimal(1)} == {
        name: value for name, value in first.items() if name != "outcome_id"
    }
    assert ("user, 2", "latency", Decimal("12.345678")) == (
        second["unit_id"],
        second["metric"],
        second["value"],
    )
    assert datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC) == second["occurred_at"]
    assert (Decimal(1000), timezone(timedelta(hours=1))) == (
        third["value"],
        getattr(third["occurred_at"], "tzinfo", None),
    )


def test_json_lines_say_the_same_as_csv() -> None:
    lines = b"""{"unit_id": "user-1", "value": 1, "outcome_id": null}

{"unit_id": "user, 2", "metric": "latency", "value": 12.345678}
{"unit_id": "user-3", "value": 123456789012.123456, "experiment_id": "other"}
"""
    first, second, third = rows_of(lines)

    assert (Decimal(1), Decimal("12.345678")) == (first["value"], second["value"])
    assert (Decimal("123456789012.123456"), "other") == (third["value"], third["experiment_id"])


def test_a_line_without_an_id_always_gets_the_same_one_and_no_other_line_has_it() -> None:
    ids = [row["outcome_id"] for row in rows_of(CSV)]
    other = [row["outcome_id"] for row in rows_of(CSV.replace(b"user-1", b"user-9"))]

    assert ids == [row["outcome_id"] for row in rows_of(CSV)]
    assert 3 == len(set(ids))
    assert not set(ids) & set(other)


def test_an_id_that_is_given_is_kept() -> None:
    assert "mine" == rows_of(b"outcome_id,unit_id\nmine,user-1\n")[0]["outcome_id"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"", "1: the file is empty"),
        (b"unit,value\nu,1\n", "1: the header must name unit_id, and may name others of "),
        (b"unit_id,unit_id\n", "1: the header must name unit_id, and may name others of "),
        (b"unit_id,value\nu\n", "2: 1 columns where the header has 2"),
        (b"unit_id,value\nu,x\n", "2: the value 'x' is not a number with at most 6 decimals"),
        (b"unit_id,value\nu,1.1234567\n", "2: the value '1.1234567' is not a number"),
        (b"unit_id,value\nu,1000000000001\n", "2: the value '1000000000001' is not a number"),
        (b"unit_id,value\nu,nan\n", "2: the value 'nan' is not a number"),
        (b"unit_id,value\n,1\n", "2: unit_id is missing"),
        (b"unit_id\n" + b"x" * 129, "2: unit_id is not 1 to 128 bytes"),
        (b"unit_id,occurred_at\nu,2026-01-01\n", "2: occurred_at '2026-01-01' is not RFC 3339"),
        (b'unit_id\n"u\n', "2: the quotes do not match"),
        (b"unit_id\nu\xff\n", "2: byte 2 is not UTF-8"),
        (b"unit_id\nu\0\n", "2: it contains a NUL byte"),
        (b"unit_id\n" + b"x" * LINE_LIMIT_BYTES + b"xx\nu\n", "2: longer than 65,536 bytes"),
        (b'{"unit_id": "u"\n', "1: it is not JSON"),
        (b'{"unit_id": "u"}\n[1]\n', "2: it is not a JSON object"),
        (b'{"unit_id": "u"}\n{"unit_id": 1, "v": 2}\n', "2: 'v' is not one of experiment_id"),
        (b'{"unit_id": "u", "value": true}\n', "1: the value is not a number"),
        (b'{"unit_id": ["u"]}\n', "1: unit_id is not a text"),
        (b'{"unit_id": "\\ud800"}\n', "1: unit_id is not 1 to 128 bytes"),
    ],
)
def test_a_malformed_line_is_named(text: bytes, fault: str) -> None:
    assert fault_of(text).startswith(fault)


def test_what_editors_put_first_and_last_does_not_matter() -> None:
    assert "u" == rows_of(b"\xef\xbb\xbfunit_id,value\r\nu,1\r\n\r\n")[0]["unit_id"]
    assert "u" == rows_of(b'\xef\xbb\xbf{"unit_id": "u"}')[0]["unit_id"]


def test_units_are_read_one_a_line() -> None:
    assert ["a", BadLine(3, "an id is 1 to 128 bytes"), "b c"] == list(
        read_units(BytesIO(b"a\n\n" + b"x" * 200 + b"\n b c \n"))
    )
