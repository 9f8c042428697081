"""The documents name what exists."""

import re
from dataclasses import fields
from pathlib import Path

from tollkeeper.config import Settings, variable_of

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src" / "tollkeeper"


def paths_in_the_map() -> list[str]:
    text = (ROOT / "docs" / "map.md").read_text(encoding="utf-8")
    return re.findall(r"`((?:src|docs|tests|benchmarks|deploy)/[^`]*)`", text)


def test_every_path_in_the_map_exists() -> None:
    paths = paths_in_the_map()

    assert len(paths) > 40
    assert [] == [path for path in paths if not (ROOT / path).exists()]


def test_every_slice_and_face_is_in_the_map() -> None:
    named = {Path(path) for path in paths_in_the_map()}
    homes = {
        path.relative_to(ROOT)
        for path in SOURCES.iterdir()
        if (path.suffix == ".py" and not path.name.startswith("__"))
        or (path.is_dir() and path.name != "__pycache__")
    }

    assert [] == sorted(
        str(home)
        for home in homes
        if not any(home == path or home in path.parents for path in named)
    )


def test_links_between_documents_lead_somewhere() -> None:
    broken = [
        f"{document.relative_to(ROOT)} -> {target}"
        for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text(encoding="utf-8"))
        if "://" not in target and not (document.parent / target).exists()
    ]

    assert [] == broken


def test_every_setting_is_documented_with_its_default() -> None:
    text = (ROOT / "docs" / "guide" / "configuration.md").read_text(encoding="utf-8")
    rows = {
        cells[1].strip().strip("`"): cells[2].strip().strip("`")
        for cells in (line.split("|") for line in text.splitlines() if line.startswith("| `"))
    }

    assert {variable_of(field.name) for field in fields(Settings)} == set(rows)
    shown = {
        variable_of(field.name): field.default
        for field in fields(Settings)
        if isinstance(field.default, int | float)
    }
    assert {name: float(default) for name, default in shown.items()} == {
        name: float(rows[name]) for name in shown
    }


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text(encoding="utf-8")

    assert [] == [
        path.name for path in sorted(folder.glob("0*.md")) if f"({path.name})" not in index
    ]
