"""The kernel stays small: what every slice shares has to be worth its place."""

from pathlib import Path

KERNEL = Path(__file__).parents[2] / "src" / "tollkeeper" / "kernel"
MOST_LINES = 400


def test_the_kernel_has_fewer_lines_than_its_limit() -> None:
    lines = {
        path.name: len(path.read_text(encoding="utf-8").splitlines())
        for path in KERNEL.rglob("*.py")
    }

    assert {"breaker.py", "clock.py", "ids.py"} <= set(lines)
    assert sum(lines.values()) < MOST_LINES, lines
