"""The examples of the README do what it says."""

import re
import subprocess
import sys
from pathlib import Path

from tests.acceptance.conftest import Service, clean_environment

README = Path(__file__).parents[2] / "README.md"


def test_the_python_example_runs(service: Service) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    environment = clean_environment({"URL": service.url, "KEY": service.api_key})
    service.run("credits", "open", "acme", "--tenant", "acme")
    service.run("credits", "topup", "acme", "50")

    said = [
        subprocess.run(
            [sys.executable, "-W", "error", "-c", example],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    ]

    assert "8 left\n" == said[0]
    assert said[1].startswith("no: ")
    assert "8 available, 42 required" in said[1]
