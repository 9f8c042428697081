"""What text of other people can do to a terminal: nothing."""

import io
import json
import unicodedata
from collections.abc import Callable

import pytest

from tollkeeper.client.escapes import HIDDEN_CATEGORIES, visible
from tollkeeper.client.terminal import Screen

EVIL = "x\x1b[2J\x1b[8mhidden\u202e\x9b1m\x7f\r\n\u2028\u200b\U000e0041\ud800y"
SHOWN = r"x\u001b[2J\u001b[8mhidden\u202e\u009b1m\u007f\r\n\u2028\u200b\udb40\udc41\ud800y"
PLAIN = "Größe 5\u00a0€, 全角\u3000空白, 👍 [bold]no markup[/bold] \\u001b"


def test_what_a_terminal_would_obey_is_shown_escaped() -> None:
    assert SHOWN == visible(EVIL)
    assert PLAIN == visible(PLAIN)
    assert EVIL == json.loads(f'"{visible(EVIL)}"')


def test_no_control_or_bidirectional_character_is_left() -> None:
    hidden = [
        chr(code)
        for code in range(0x110000)
        if unicodedata.category(chr(code)) in HIDDEN_CATEGORIES
    ]
    bidirectional = {*"\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"}

    assert bidirectional < set(hidden)
    assert visible("".join(hidden)).isascii()
    assert visible("".join(hidden)).isprintable()


PRINTS: dict[str, Callable[[Screen], None]] = {
    "facts": lambda screen: screen.facts(EVIL, ((EVIL, EVIL), (EVIL, f"bad:{EVIL}"))),
    "addresses": lambda screen: screen.addresses(EVIL, ((EVIL, EVIL),)),
    "table": lambda screen: screen.table(EVIL, ("one", "two"), ((EVIL, EVIL), ("a", EVIL))),
    "remark": lambda screen: screen.remark(EVIL),
    "warn": lambda screen: screen.warn(EVIL),
}


@pytest.mark.parametrize("name", PRINTS)
def test_whatever_prints_text_prints_it_escaped(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    PRINTS[name](Screen())
    said = capsys.readouterr()
    text = said.out + said.err

    assert SHOWN in text
    assert text.replace("\n", "").isprintable()


def test_a_json_document_says_the_same_and_obeys_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    document = {"description": EVIL.replace("\ud800", ""), "plain": PLAIN}
    Screen(as_json=True).json_lines((document, document))
    lines = io.StringIO(capsys.readouterr().out).readlines()

    assert [document, document] == [json.loads(line) for line in lines]
    assert all(visible(line[:-1]) == line[:-1] for line in lines)


def test_nothing_is_cut_off_a_table_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    columns = [f"column {number:02} of many" for number in range(12)]
    Screen().table("Wide", columns, [[*["x" * 20] * 11, "the last"]])

    header, row = capsys.readouterr().out.splitlines()[-2:]
    assert columns[-1] == header.strip().rpartition("  ")[2]
    assert "the last" == row.strip().rpartition("  ")[2]


def test_of_a_line_that_changes_a_file_has_the_last_one(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen().line() as show:
        show("1 of 2")
        show(EVIL)
    with Screen(as_json=True).line() as show:
        show("nothing of it")
    said = capsys.readouterr()

    assert ("", SHOWN) == (said.out, "".join(said.err.split("\n")))
    assert Screen().is_plain
