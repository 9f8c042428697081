"""Reading, checking and pricing traces; which line gets which key."""

from datetime import UTC, datetime
from io import BytesIO

import pytest

from tollkeeper.client.trace import (
    BAD_LINES_LISTED,
    LINE_LIMIT_BYTES,
    BadLine,
    Terms,
    TraceMalformed,
    TraceRow,
    read_rows,
    survey_trace,
)

HEADER = b"TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
GOOD = b"2023-11-16 18:17:03.9799600,4808,10\r\n"
TERMS = Terms(accounts=3, price_context=1, price_generated=3)


def rows_of(content: bytes) -> list[TraceRow | BadLine]:
    return list(read_rows(BytesIO(content)))


def test_a_row_has_its_line_its_time_and_its_tokens() -> None:
    at = datetime(2023, 11, 16, 18, 17, 3, 979960, tzinfo=UTC)

    assert rows_of(HEADER + GOOD) == [TraceRow(2, at, 4808, 10)]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + HEADER + GOOD,
        b"GeneratedTokens,Model,ContextTokens,TIMESTAMP\n10,x,4808,2023-11-16 18:17:03.97996\n",
        b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16T18:17:03.979960Z,4808,10",
        b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 20:17:03.97996+02:00, 4808 ,10\n\n",
        b'"TIMESTAMP","ContextTokens","GeneratedTokens"\n"2023-11-16 18:17:03.97996","4808","10"\n',
    ],
    ids=["byte order mark", "other columns", "no last line break", "zone and blanks", "quoted"],
)
def test_other_ways_to_write_the_same(content: bytes) -> None:
    assert rows_of(content) == rows_of(HEADER + GOOD)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"2023-11-16 18:17:03,4808", "2 columns where the header has 3"),
        (b"2023-11-16 18:17:03,4808,10,7", "4 columns where the header has 3"),
        (b"2023-11-16 18:17:03,,10", "ContextTokens is missing"),
        (b"2023-11-16 18:17:03,4808.5,10", "ContextTokens is not a whole number: '4808.5'"),
        (b"2023-11-16 18:17:03,1_000,10", "ContextTokens is not a whole number: '1_000'"),
        (b"2023-11-16 18:17:03,\xd9\xa3,10", "ContextTokens is not a whole number"),
        (b"2023-11-16 18:17:03,4808,-10", "GeneratedTokens is negative: '-10'"),
        (b"2023-11-16 18:17:03,9223372036854775808,1", "ContextTokens is too large"),
        (b"2023-11-16 18:17:03,9" + b"9" * 50 + b",1", "ContextTokens is too large"),
        (b"yesterday,4808,10", "TIMESTAMP is not a time: 'yesterday'"),
        (b"2023-13-16 18:17:03,4808,10", "TIMESTAMP is not a time"),
        (b"0001-01-01 00:00:00+23:00,4808,10", "TIMESTAMP is not a time"),
        (b"2023-11-16 18:17:03,4\x0008,10", "it contains a NUL byte"),
        (b"2023-11-16 18:17:03,4808,\xff", "byte 26 is not UTF-8"),
        (b'"2023-11-16 18:17:03,4808,10', "the quotes do not match"),
        (b"x" * (LINE_LIMIT_BYTES * 2 + 7), "longer than"),
    ],
)
def test_a_bad_line_is_named_and_the_next_is_read(line: bytes, problem: str) -> None:
    first, bad, last = rows_of(HEADER + GOOD + line + b"\n" + GOOD)

    assert isinstance(bad, BadLine)
    assert bad.line == 3
    assert bad.problem.startswith(problem)
    assert isinstance(first, TraceRow)
    assert isinstance(last, TraceRow)
    assert (first.line, last.line) == (2, 4)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        GOOD,
        b"TIMESTAMP,ContextTokens\n" + GOOD,
        HEADER[:-2] + b",ContextTokens\n" + GOOD,
    ],
)
def test_without_the_header_there_is_no_trace(content: bytes) -> None:
    (bad,) = rows_of(content)

    assert isinstance(bad, BadLine)
    assert bad.line == 1


def test_a_survey_sums_by_account_and_counts_what_is_free() -> None:
    lines = [b"1,1", b"0,0", b"10,0", b"x,1", b"0,2"]
    content = HEADER + b"".join(b"2023-11-16 18:17:03," + line + b"\n" for line in lines)
    survey = survey_trace(BytesIO(content), TERMS)

    assert (survey.rows, survey.free, survey.billable, survey.bad_count) == (4, 1, 3, 1)
    assert survey.units == 20
    # Lines 2 and 3 (free), 4, 6: account is the line modulo 3.
    assert survey.units_by_account == (6, 10, 4)


def test_a_row_that_costs_more_than_an_amount_holds_is_bad() -> None:
    content = HEADER + b"2023-11-16 18:17:03,1,9223372036854775807\n"
    survey = survey_trace(BytesIO(content), TERMS)

    assert survey.bad[0].problem.startswith("it costs 27670116110564327422")


def test_many_bad_lines_are_counted_and_the_first_ones_named() -> None:
    survey = survey_trace(BytesIO(HEADER + b"x\n" * 1_000), TERMS)
    error = TraceMalformed(path="t.csv", bad=survey.bad, count=survey.bad_count)

    assert len(survey.bad) == BAD_LINES_LISTED
    assert str(error) == (
        "t.csv, line 2: 1 columns where the header has 3; 999 more lines are malformed; "
        "nothing was billed"
    )


@pytest.mark.parametrize(
    "other",
    [
        Terms(accounts=4, price_context=1, price_generated=3),
        Terms(accounts=3, price_context=2, price_generated=3),
        Terms(accounts=3, price_context=1, price_generated=4),
        Terms(accounts=3, price_context=1, price_generated=3, run="again"),
    ],
)
def test_other_terms_are_other_accounts_and_keys(other: Terms) -> None:
    one, two = (survey_trace(BytesIO(HEADER + GOOD), terms) for terms in (TERMS, other))

    assert one.consumption_key(2) != two.consumption_key(2)
    assert one.topup_key(2, 5) != two.topup_key(2, 5)
    assert not set(one.account_ids) & set(two.account_ids)


def test_the_same_content_has_the_same_keys_and_other_content_others() -> None:
    one = survey_trace(BytesIO(HEADER + GOOD), TERMS)
    same = survey_trace(BytesIO(HEADER + GOOD), TERMS)
    other = survey_trace(BytesIO(HEADER + GOOD + b"\n"), TERMS)

    assert one.consumption_key(2) == same.consumption_key(2)
    assert one.consumption_key(2) != other.consumption_key(2)
    # Written down: a release that derives other keys would charge a trace twice.
    assert one.consumption_key(2) == (
        "ad2b92f0dca0205f331ad819dc577a90de213d599edacb0e724c2cf2cd810cd1"
    )
