"""The import contracts leave out nothing that they cannot name as a whole."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PURE = "the pure core does no I/O and reads no clock"


def test_every_module_of_telemetry_is_pure_or_forbidden_to_what_is_pure() -> None:
    """One of them is pure, so the package cannot be forbidden as a whole."""
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    [contract] = [
        each for each in configuration["tool"]["importlinter"]["contracts"] if each["name"] == PURE
    ]
    named = {*contract["source_modules"], *contract["forbidden_modules"]}
    modules = {
        f"tollkeeper.telemetry.{path.stem}"
        for path in (ROOT / "src" / "tollkeeper" / "telemetry").glob("*.py")
        if path.stem != "__init__"
    }

    assert set() == modules - named
