"""Notes on databases, and names beside theirs."""

import pytest
from tests.backup_values import NOW

from tollkeeper.migrate.note import (
    NAME_LIMIT_BYTES,
    Note,
    State,
    aside_name,
    scratch_name,
    scratch_prefix,
    understood,
    written,
)

TAG = "20260301t120000z_00000a"


@pytest.mark.parametrize("state", State)
def test_a_note_is_understood_as_it_was_written(state: State) -> None:
    note = Note(
        state=state,
        database="db\n{1}",
        service="credits",
        backup="b",
        at=NOW,
        comment="it's\n{mine}",
    )

    assert note == understood(written(note))


def test_a_closed_database_says_what_opens_it() -> None:
    note = Note(state=State.CLOSING, database="db", service="credits", backup="b", at=NOW)

    assert "`tollkeeper migrate rollback credits --reopen` opens it" in written(note)


@pytest.mark.parametrize(
    "comment", [None, "", "the ledger", "tollkeeper: a word", "tollkeeper: {}", "tollkeeper: {"]
)
def test_another_comment_is_no_note(comment: str | None) -> None:
    assert understood(comment) is None


@pytest.mark.parametrize("database", ["credits", "x" * 63, "ü" * 31, '"quoted"; --'])
def test_names_are_kept_whole(database: str) -> None:
    aside, scratch = aside_name(database, "before", TAG), scratch_name(database, TAG)

    assert max(len(aside.encode()), len(scratch.encode())) <= NAME_LIMIT_BYTES
    assert aside.endswith(f"_before_{TAG}")
    assert scratch.startswith(scratch_prefix(database))
