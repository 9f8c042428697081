"""No value of a statement is shown, whatever the statement is."""

import re

import asyncpg
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.database.statements import MAX_LENGTH, fingerprint_of, normalised

SECRET = "s3cr3t"
NUMBER = "86753090"

LITERALS = (
    f"'{SECRET}'",
    f"'it''s {SECRET}'",
    f"'a' \n '{SECRET}'",
    rf"E'\'{SECRET}'",
    rf"e'it\'s {SECRET} \\'",
    f"$${SECRET}$$",
    f"$t$ $$ ' {SECRET} $t$",
    f"$tag_1${SECRET}$tag_1$",
    f"N'{SECRET}'",
    f"U&'{SECRET}'",
    f"u&'\\0441{SECRET}'",
    f"DATE '{SECRET}'",
    f"'{SECRET}'::text",
    NUMBER,
    f"-{NUMBER}",
    f"{NUMBER}.5",
    f".{NUMBER}",
    f"1.5e-{NUMBER[:1]}{NUMBER}",
    f"1e{NUMBER}",
    f"X'{NUMBER}'",
    f"B'{NUMBER}'",
    f"($1, {NUMBER}, '{SECRET}')",
    f"/* {SECRET} */",
    f"/* /* ' */ {SECRET} */",
    f"-- {SECRET} '\n",
)
"""Where a value can stand; comments may hold one too."""

REST = (
    "SELECT", "FROM accounts", "WHERE", "IN (", "IN", "VALUES (", "VALUES", "ARRAY[", "]", "(", ")",
    ",", ";", "=", "-", "+", "*", "/", "::int", "AS", "$1", "$23", '"balance"', '"a ""name"" "',
    "_e", "E", "x", "NULL", "TRUE", "?", "?|", "||", ".", "'plain'", "$x", "größe",
    "/* * / ' */", "-- ' $$ \" \n", "\t", "\r\n", "\x00", "1", "now()",
)  # fmt: skip
"""What may stand around it, and leaves a scanner where it was."""

TAILS = ("", "'open", "E'open\\'", "$$open", '"open', "/* open", "--open", "B'")

pieces = st.lists(st.sampled_from(REST), max_size=6).map(" ".join)


@given(before=pieces, after=pieces, tail=st.sampled_from(TAILS))
def test_a_value_is_not_shown(before: str, after: str, tail: str) -> None:
    for literal in LITERALS:
        shown = normalised(f"{before} {literal} {after} {tail}{SECRET if tail else ''}")

        assert SECRET not in shown, literal
        assert NUMBER not in shown, literal


ALPHABET = "'\"\\$?/*-+.,;:()[]=<>|&!@#^~%`{} \n\r\teEbBxXuUnN&ab_019é\u2018\u0660\x00\x85\ud800"

strange = st.one_of(
    st.text(),
    st.text(alphabet=ALPHABET),
    st.lists(st.sampled_from([*LITERALS, *REST, *TAILS]), max_size=25).map(" ".join),
    st.lists(st.sampled_from([*LITERALS, *REST, *TAILS]), max_size=25).map("".join),
    st.tuples(pieces, st.integers(1, 600)).map(lambda each: each[0] * each[1]),
)


@given(sql=strange)
def test_a_shown_statement_is_short_clean_and_shown_as_itself(sql: str) -> None:
    shown = normalised(sql)

    assert shown == normalised(shown)
    assert MAX_LENGTH >= len(shown)
    assert "'" not in shown
    assert re.search(r"[\x00-\x1f\x7f]|  |--|/\*", shown) is None
    assert re.search(r"(?<![\w$])\d", shown) is None, "a number that is no part of a name"
    assert 12 == len(fingerprint_of(shown))


@given(
    values=st.lists(st.one_of(st.integers(), st.text("ab' -"), st.none()), min_size=1, max_size=9)
)
def test_a_list_is_the_same_statement_however_long(values: list[int | str | None]) -> None:
    def literal(value: int | str | None) -> str:
        if value is None:
            return "NULL"
        return str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"

    items = ["0", *map(literal, values)]

    for sql in (
        f"a IN ({', '.join(items)})",
        f"VALUES ({'), ('.join(items)})",
        f"ARRAY[{','.join(items)}]",
    ):
        assert sql[: sql.index("0")] + "?" + sql[-1] == normalised(sql)


async def test_what_is_planted_is_a_value_to_postgresql(empty_dsn: str) -> None:
    strings = [each for each in LITERALS if SECRET in each and each[0] not in "(/-"]
    connection = await asyncpg.connect(empty_dsn)
    try:
        for literal in (each for each in strings if not each.startswith("DATE")):
            value = await connection.fetchval(f"SELECT ({literal})::text")

            assert SECRET in value, literal
    finally:
        await connection.close()
