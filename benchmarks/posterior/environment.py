"""The contestants' Python environment: made once, with the versions that the figures name."""

import subprocess
import sys
from pathlib import Path

CONTESTANTS = ("gbstats==0.8.0", "mabwiser==2.7.4", "bayesian-testing==0.10.0", "numpy<2")
"""They need another numpy than we do, so they cannot live in our environment."""

HOME = Path(__file__).parents[2] / ".venv" / "contestants"
INSTALL_TIMEOUT_S = 600


class ContestantsMissing(RuntimeError):
    """Their environment could not be made."""


def contestants_python() -> Path:
    """Return the Python that has the contestants; make its environment if it is not there.

    Raises:
        ContestantsMissing: A package could not be installed.
    """
    python, stamp = HOME / "bin" / "python", HOME / "contestants"
    wanted = "\n".join(CONTESTANTS)
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    _run([sys.executable, "-m", "venv", "--clear", str(HOME)])
    _run([str(python), "-m", "pip", "install", "--quiet", *CONTESTANTS])
    stamp.write_text(wanted, encoding="utf-8")
    return python


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S
    )
    if done.returncode != 0:
        raise ContestantsMissing(
            f"what we are compared with could not be installed from PyPI ({' '.join(command)}): "
            f"{done.stderr.strip()[-500:]}"
        )
