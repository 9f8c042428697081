"""What must hold for every trace: each line accounted for, sums exact, keys all different."""

from io import BytesIO

from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.client.trace import BadLine, Terms, TraceRow, price_rows, read_rows, survey_trace

HEADER = b"TIMESTAMP,ContextTokens,GeneratedTokens\n"

tokens = st.integers(min_value=0, max_value=2**63 - 1)
times = st.datetimes().map(str)
terms = st.builds(
    Terms,
    accounts=st.integers(min_value=1, max_value=20),
    price_context=st.integers(min_value=0, max_value=1_000),
    price_generated=st.integers(min_value=0, max_value=1_000),
)


@given(rows=st.lists(st.tuples(times, tokens, tokens), max_size=30))
def test_what_is_written_is_read(rows: list[tuple[str, int, int]]) -> None:
    lines = "".join(f"{at},{context},{generated}\n" for at, context, generated in rows)
    found = list(read_rows(BytesIO(HEADER + lines.encode())))

    assert [
        (each.line, each.context_tokens, each.generated_tokens)
        for each in found
        if isinstance(each, TraceRow)
    ] == [(line, *row[1:]) for line, row in enumerate(rows, start=2)]


@given(content=st.lists(st.binary(max_size=40), max_size=20), terms=terms)
def test_every_line_is_a_row_or_blank_or_named(content: list[bytes], terms: Terms) -> None:
    body = b"".join(each.replace(b"\n", b"") + b"\n" for each in content)
    found = list(price_rows(BytesIO(HEADER + body), terms))
    lines = [each.line if isinstance(each, BadLine) else each[0].line for each in found]

    assert lines == [
        number
        for number, line in enumerate(body.split(b"\n")[:-1], start=2)
        if line.decode("utf-8", "replace").strip()
    ]


@given(
    rows=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), max_size=60),
    terms=terms,
)
def test_the_sums_are_what_the_rows_cost(rows: list[tuple[int, int]], terms: Terms) -> None:
    lines = "".join(f"2024-01-01 00:00:00,{context},{made}\n" for context, made in rows)
    survey = survey_trace(BytesIO(HEADER + lines.encode()), terms)
    cost = sum(c * terms.price_context + g * terms.price_generated for c, g in rows)

    assert survey.units == cost == sum(survey.units_by_account)
    assert survey.rows == len(rows)
    keys = {survey.consumption_key(line) for line in range(2, len(rows) + 2)}
    assert len(keys) == len(rows)
    assert len(set(survey.account_ids)) == terms.accounts
