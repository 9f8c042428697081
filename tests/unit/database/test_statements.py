"""How statements and parameters look; that no value is shown is in `property/`."""

import pytest

from tollkeeper.database.statements import (
    CUT,
    MAX_LENGTH,
    MAX_TYPES,
    fingerprint_of,
    normalised,
    parameter_types,
)


@pytest.mark.parametrize(
    ("expected", "sql"),
    [
        ("SELECT a, b FROM t WHERE x = ?", "SELECT a,\n  b -- c\nFROM t /* d */ WHERE x = 'it''s'"),
        ("WHERE a = $1 AND b IN ($2)", "WHERE a = $1 AND b IN ($2, $3, $4)"),
        ("b IN (SELECT c FROM d WHERE e > ?)", "b IN ( SELECT c FROM d WHERE e > 1.5e-7 )"),
        ("(a, b) IN ((?, ?))", "(a, b) IN ((1, 2), (3, 4))"),
        (
            "INSERT INTO t (a, b) VALUES (?, ?), ($1, now()) AS b",
            "INSERT INTO t (a, b) VALUES (1, E'\\''), (NULL, $1), ($1, now()), ($2, now()) AS b",
        ),
        ("ANY(ARRAY[[?]])", "ANY(ARRAY[[1, 2], [3, 4]])"),
        ("f(?, ?), a - ?, (?), b[?]", "f(1, 2), a - 5, (-5), b[1]"),
        ("?::int, DATE ?, -a, - ?", "'5'::int, DATE '2026-01-01', -a, - $$5$$"),
        ("a = ?, b =?", "a = -5, b =-5"),
        ("a IN (VALUES (?))", "a IN (VALUES (1), (2), (3))"),
        ("SELECT a", "SELECT /* /* ' */ it's never closed */ a"),
        ("a ? AND b ?| $1", "a ? 'k' AND b ?| $1"),
        ("a IN (b, ?, ?::int)", "a IN (b, 1, 2::int, 3, 4::int)"),
        ("VALUES (?), (a)", "VALUES (1), (NULL), (a)"),
        ('SELECT "größe", "?" FROM straße', 'SELECT "größe", "a b" FROM straße'),
        ("SELECT ?", f"SELECT {'x' * 64}"),
        ("SELECT $?, $12345", "SELECT $123456, $12345"),
        ("SELECT a, ?", "SELECT a, 'never closed; DROP TABLE t"),
        ("SELECT a, ?", r"SELECT a, 'C:\', b, 'two servers read this differently'"),
        ("SELECT ?, b", r"SELECT 'C:\\', b"),
        ("", " -- nothing\n"),
    ],
)
def test_a_statement_as_it_is_shown(expected: str, sql: str) -> None:
    assert expected == normalised(sql)


def test_a_long_statement_is_cut_between_two_words() -> None:
    shown = normalised("SELECT " + ", ".join(f"column_{number}" for number in range(1_000)))

    assert MAX_LENGTH - 20 < len(shown) <= MAX_LENGTH
    assert shown.endswith(f", column_174, {CUT}")


def test_of_a_huge_statement_the_beginning_is_read() -> None:
    huge = f"INSERT INTO t VALUES {', '.join(['(1)'] * 1_000_000)}"

    assert f"INSERT INTO t VALUES (?), {CUT}" == normalised(huge)


def test_brackets_without_end_are_no_trouble() -> None:
    assert "IN (" * 300 == normalised("IN (" * 300)
    assert ")" * 300 == normalised(") " * 300)


def test_statements_that_differ_have_other_fingerprints() -> None:
    same = {fingerprint_of(normalised(f"SELECT {value}")) for value in ("1", "'a'", "2 -- b")}

    assert {"b28006e4549a"} == same
    assert "b28006e4549a" != fingerprint_of(normalised("SELECT a"))


def test_parameters_are_told_by_type() -> None:
    assert (
        "int",
        "str",
        "null",
        "bytes[1200]",
        "list[int][3]",
        "list[0]",
        "tuple[int|str][2]",
    ) == parameter_types((1, "secret", None, b"x" * 1_200, [1, 2, None], [], (1, "b")))
    assert ("list[tuple][2]",) == parameter_types(([(1, "a"), (2, "b")],))
    assert ("list_iterator",) == parameter_types(iter([1]))
    assert "8 more" == parameter_types(list(range(MAX_TYPES + 8)))[-1]
