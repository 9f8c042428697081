"""What a process exposes to Prometheus, as names and labels."""

import re
from pathlib import Path

import httpx

TIMEOUT_S = 20.0
GUIDE = Path(__file__).parents[1] / "docs" / "guide" / "operations.md"


def series(url: str) -> set[str]:
    """Return the names and labels of everything in the exposition."""
    text = httpx.get(f"{url}/metrics", timeout=TIMEOUT_S).text
    return {line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")}


def undocumented(found: set[str]) -> list[str]:
    """Return the metrics that the guide does not list."""
    guide = GUIDE.read_text(encoding="utf-8")
    listed = set(re.findall("`([a-z0-9_]+)`", guide))
    names = {name.partition("{")[0] for name in found}
    families = {name: re.sub("_(bucket|count|sum|created)$", "", name) for name in names}
    return sorted(
        {
            family
            for name, family in families.items()
            if not name.startswith(("process_", "python_"))
            and not {name, family, f"{family}_total"} & listed
        }
    )
