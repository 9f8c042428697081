"""How a migration's file is read: sections, statements, and what it is known by."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.migrate.errors import BadMigrationFile, NotOneUnitOfWork
from tollkeeper.migrate.model import Migration
from tollkeeper.migrate.script import digest_of, first_words, index_of, migration_from, statements


def read(source: str) -> Migration:
    return migration_from("credits", "0042_add_holds.sql", source)


def texts(sql: str) -> list[str]:
    return [statement.text for statement in statements(sql)]


def test_name_gives_number_and_what() -> None:
    migration = read("-- up\nSELECT 1;")

    assert (42, "add_holds", "credits/0042_add_holds.sql") == (
        migration.version,
        migration.name,
        migration.file,
    )


def test_sections_are_told_apart() -> None:
    migration = read(
        "-- Why.\n-- up\nCREATE TABLE a ();\nCREATE TABLE b ();\n\n"
        "-- verify\nSELECT true;\n-- down derived:a,b\nDROP TABLE b;\nDROP TABLE a;\n"
    )

    assert (["CREATE TABLE a ()", "CREATE TABLE b ()"], ["SELECT true"]) == (
        [each.text for each in migration.up],
        [each.text for each in migration.checks],
    )
    assert migration.down is not None
    assert [9, 10] == [each.line for each in migration.down]
    assert frozenset({"a", "b"}) == migration.derived
    assert migration.is_transactional


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("SELECT 1;", "after `-- up`"),
        ("SELECT 1;\n-- up\nSELECT 2;", "after `-- up`"),
        ("-- down\nSELECT 1;\n-- up\nSELECT 2;", "after `-- up`"),
        ("-- up\nSELECT 1;\n-- up\nSELECT 2;", "twice"),
        ("-- up\n-- nothing\n", "`-- up` is empty"),
        ("-- up\nSELECT 1;\n-- down\n", "`-- down` is empty"),
        ("-- up transaction:none\nSELECT 1;", "not understood"),
        ("-- up\nSELECT 1;\n-- verify transaction:false\nSELECT true;", "not understood"),
        ("-- up transaction:false\nSELECT 1; SELECT 2;\n-- verify\nSELECT true;", "exactly one"),
        ("-- up transaction:false\nSELECT 1;", "needs `-- verify`"),
    ],
)
def test_file_that_is_not_as_it_must_be_says_why(source: str, problem: str) -> None:
    with pytest.raises(BadMigrationFile, match=problem):
        read(source)


@pytest.mark.parametrize("ending", ["COMMIT", "rollback", "BEGIN", "/* so */ END", "SAVEPOINT a"])
def test_file_that_ends_its_unit_of_work_is_refused(ending: str) -> None:
    with pytest.raises(NotOneUnitOfWork):
        read(f"-- up\nSELECT 1; {ending};")


def test_check_that_ends_its_unit_of_work_is_refused() -> None:
    with pytest.raises(NotOneUnitOfWork):
        read("-- up\nSELECT 1;\n-- verify\nCOMMIT;")


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("", []),
        (" ; ;-- nothing\n;/* ; */", []),
        ("SELECT 1", ["SELECT 1"]),
        ("SELECT 1; SELECT 2;", ["SELECT 1", "SELECT 2"]),
        (
            "SELECT ';'; SELECT E'\\';'; SELECT U&';';",
            ["SELECT ';'", "SELECT E'\\';'", "SELECT U&';'"],
        ),
        ('SELECT ";" -- ;\n; SELECT 2', ['SELECT ";"', "SELECT 2"]),
        ("DO $$ a; b; $$; DO $x$ $$; $x$;", ["DO $$ a; b; $$", "DO $x$ $$; $x$"]),
        ("SELECT /* a /* ; */ ; */ 1;", ["SELECT /* a /* ; */ ; */ 1"]),
        (
            "CREATE RULE r AS ON INSERT TO t DO (a; b);",
            ["CREATE RULE r AS ON INSERT TO t DO (a; b)"],
        ),
        (
            "CREATE FUNCTION f() BEGIN ATOMIC SELECT CASE a WHEN b THEN c END; END; TABLE b",
            [
                "CREATE FUNCTION f() BEGIN ATOMIC SELECT CASE a WHEN b THEN c END; END",
                "TABLE b",
            ],
        ),
    ],
)
def test_statements_end_where_postgresql_ends_them(sql: str, expected: list[str]) -> None:
    assert expected == texts(sql)


WHOLE = st.sampled_from(
    ["SELECT 1", "SELECT ';'", "DO $$;$$", "SELECT (1)", 'SELECT ";" FROM a', "SELECT $1"]
)
BETWEEN = st.sampled_from([";", " ; ", ";\n-- ; \n", "; /* ; */ "])


@given(st.lists(st.tuples(WHOLE, BETWEEN), max_size=8))
def test_statements_are_what_was_put_together(pieces: list[tuple[str, str]]) -> None:
    text = "".join(statement + between for statement, between in pieces)

    assert [statement for statement, _ in pieces] == texts(text)


@given(st.text())
def test_splitting_what_was_split_changes_nothing(text: str) -> None:
    assert digest_of(";".join(texts(text))) == digest_of(
        ";".join(each.text for each in statements(";".join(texts(text))))
    )


LINES = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=8))


@given(lines=LINES)
def test_neither_sum_sees_how_lines_end(lines: list[str]) -> None:
    def sums(ending: str) -> tuple[str, str]:
        migration = read(ending.join(["-- up", "SELECT 'a'", *(f"-- {each}" for each in lines)]))
        return migration.checksum, migration.digest

    assert sums("\n") == sums("\r\n") == sums("\r")


def test_comment_changes_the_checksum_and_not_the_digest() -> None:
    one, other = read("-- up\nSELECT 1;"), read("-- up\nSELECT  1  ; -- one\n")

    assert one.checksum != other.checksum
    assert one.digest == other.digest


@pytest.mark.parametrize("sql", ["SELECT 2", "SELECT '1'", "SELECT 1 1", "select 1", "SELECT 11"])
def test_what_postgresql_may_see_changes_the_digest(sql: str) -> None:
    assert digest_of("SELECT 1") != digest_of(sql)


def test_way_back_may_be_mended_without_a_new_sum() -> None:
    one, other = read("-- up\nSELECT 1;\n"), read("-- up\nSELECT 1;\n\n-- down\nSELECT 2;\n")

    assert (one.checksum, one.digest) == (other.checksum, other.digest)


@pytest.mark.parametrize(("position", "line"), [(1, 3), (2, 3), (3, 4), (4, 4), (5, 5), (6, 6)])
def test_line_of_a_position_counts_from_one(position: int, line: int) -> None:
    """Characters 1 to 6 of "a", "b", an empty line, "c", on lines 3 to 6 of the file."""
    [statement] = statements("-- up\n\na\nb\n\nc")

    assert line == statement.line_at(position)


@pytest.mark.parametrize(
    ("sql", "name"),
    [
        ("CREATE INDEX CONCURRENTLY a ON t (b)", "a"),
        ("create unique index concurrently if not exists a ON t (b)", "a"),
        ('CREATE INDEX CONCURRENTLY "A b" ON t (b)', '"A b"'),
        ("CREATE INDEX a ON t (b)", None),
        ("VACUUM t", None),
    ],
)
def test_index_that_is_built_concurrently_is_named(sql: str, name: str | None) -> None:
    [statement] = statements(sql)

    assert name == index_of(statement)


def test_first_words_end_at_what_is_none() -> None:
    [statement] = statements("/* a */ create TABLE (b)")

    assert ("CREATE", "TABLE") == first_words(statement, 5)
