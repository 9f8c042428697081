"""Signed notes: the published examples, and everything that is none."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.credits.errors import NoteInvalid
from tollkeeper.credits.note import (
    make_key,
    notes_in,
    open_note,
    signing_key,
    split_note,
    verifying_key,
)

# From the documentation of Go's golang.org/x/mod/sumdb/note, whose format C2SP wrote down.
TEXT = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
)
PETER_PRIVATE = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
ENOCH = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
BY_PETER = (
    "— PeterNeumann "
    "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
BY_ENOCH = (
    "— EnochRoot "
    "rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n"
)
BOTH = f"{TEXT}\n{BY_PETER}{BY_ENOCH}"
KEY = make_key("example.com/log", bytes(range(32)))
TWO_NOTES = BOTH + "\n" + KEY.sign("two\n")


def test_the_published_example_is_signed_to_the_byte() -> None:
    key = signing_key(PETER_PRIVATE)

    assert PETER == key.verifying.text
    assert PETER_PRIVATE == key.text
    assert f"{TEXT}\n{BY_PETER}" == key.sign(TEXT)


@pytest.mark.parametrize("keys", [[PETER], [ENOCH], [PETER, ENOCH]])
def test_the_published_example_opens_with_either_key(keys: list[str]) -> None:
    assert TEXT == open_note(BOTH, [verifying_key(key) for key in keys])


def test_a_note_that_nobody_known_signed_is_refused() -> None:
    with pytest.raises(NoteInvalid, match=r"none of the given keys .*PeterNeumann"):
        open_note(f"{TEXT}\n{BY_PETER}", [verifying_key(ENOCH)])


def test_a_wrong_signature_of_a_known_key_is_refused_beside_a_right_one() -> None:
    keys = [verifying_key(PETER), verifying_key(ENOCH)]
    wrong = BY_ENOCH.replace("zmZa0S", "zmZa0T")
    with pytest.raises(NoteInvalid, match="the signature of EnochRoot is wrong"):
        open_note(f"{TEXT}\n{BY_PETER}{wrong}", keys)


def test_another_key_of_the_same_name_does_not_count() -> None:
    other = make_key("example.com/log", bytes(32))
    with pytest.raises(NoteInvalid, match="none of the given keys"):
        open_note(KEY.sign(TEXT), [other.verifying])


@given(place=st.integers(0, len(KEY.sign(TEXT)) - 1), bit=st.integers(0, 6))
def test_a_note_with_one_bit_changed_does_not_open(place: int, bit: int) -> None:
    note = KEY.sign(TEXT)
    changed = note[:place] + chr(ord(note[place]) ^ 1 << bit) + note[place + 1 :]
    with pytest.raises(NoteInvalid):
        open_note(changed, [KEY.verifying])


@pytest.mark.parametrize(
    "note",
    [
        "", "\n", "text\n", "text\n\n", "text\n\nno signature\n", f"text\n\n{BY_PETER[:-1]}",
        f"te\x07xt\n\n{BY_PETER}", "text\n\n— Name notbase64!\n", "text\n\n— Name AAAA\n",
        "text\n\n— AAAAAAAAAA\n",
        f"{TEXT}\n{BY_PETER.replace('nAM=', 'nAN=')}",
    ],
)  # fmt: skip
def test_what_is_no_note_is_refused(note: str) -> None:
    with pytest.raises(NoteInvalid):
        split_note(note)


@pytest.mark.parametrize("text", ["", "no newline", "tab\there\n"])
def test_what_cannot_be_signed_is_refused(text: str) -> None:
    with pytest.raises(NoteInvalid, match="ends with a newline"):
        KEY.sign(text)


@pytest.mark.parametrize("name", ["", "with space", "with+plus", "no\u00a0break", "bell\x07"])
def test_a_name_that_notes_cannot_carry_is_refused(name: str) -> None:
    with pytest.raises(NoteInvalid, match="name of a key"):
        make_key(name, bytes(32))


@pytest.mark.parametrize(
    "text",
    [
        "", "name", "name+00000000", PETER.replace("c74f20a3", "c74f20a4"),
        PETER.replace("Neumann", "Newman"), PETER[:-4], PETER.replace("+AR", "+AB", 1),
        PETER.replace("+AR", "+CR", 1), "a+00000000+!",
    ],
)  # fmt: skip
def test_what_is_no_public_key_is_refused(text: str) -> None:
    with pytest.raises(NoteInvalid):
        verifying_key(text)


@pytest.mark.parametrize(
    "text", ["", PETER, PETER_PRIVATE[:-4], PETER_PRIVATE.replace("c74f", "c74e")]
)
def test_what_is_no_private_key_is_refused(text: str) -> None:
    with pytest.raises(NoteInvalid):
        signing_key(text)


def test_a_key_shorter_than_ed25519_is_refused() -> None:
    with pytest.raises(NoteInvalid, match="32 bytes"):
        make_key("name", bytes(31))


def test_a_private_key_is_not_shown() -> None:
    assert "seed" not in repr(KEY)
    assert KEY.text.rpartition("+")[2] not in repr(KEY)


@pytest.mark.parametrize("between", ["", "\n", "\n\n"])
def test_a_file_gives_back_its_notes(between: str) -> None:
    notes = [BOTH, KEY.sign("one\n"), KEY.sign("two\nlines\n")]
    lines = between.join(notes).splitlines(keepends=True)

    assert notes == list(notes_in(lines))
    assert notes == list(notes_in([*lines, "\n"]))
    assert [] == list(notes_in([]))


@given(cut=st.integers(1, len(TWO_NOTES)))
def test_a_file_cut_anywhere_gives_its_whole_notes_and_says_that_it_is_torn(cut: int) -> None:
    left = TWO_NOTES[:-cut]
    notes = notes_in(left.splitlines(keepends=True))
    found: list[str] = []
    is_torn = False
    try:
        while note := next(notes, ""):
            found.append(note)
    except NoteInvalid:
        is_torn = True

    assert found in ([], [BOTH], [BOTH.replace(BY_ENOCH, "")])
    assert is_torn == (left not in {"", BOTH, f"{BOTH}\n", BOTH.replace(BY_ENOCH, "")})


@pytest.mark.parametrize(
    "text", [f"{BY_PETER}\n", "text\n\nmore\n", f"text\n\n{BY_PETER}more\n", "x" * 70_000 + "\n"]
)
def test_what_is_not_a_file_of_notes_is_refused(text: str) -> None:
    with pytest.raises(NoteInvalid):
        list(notes_in(text.splitlines(keepends=True)))


def test_the_hash_of_a_key_is_eight_hexadecimal_digits() -> None:
    assert re.fullmatch(r"example\.com/log\+[0-9a-f]{8}\+A[A-Za-z0-9+/]{43}", KEY.verifying.text)
