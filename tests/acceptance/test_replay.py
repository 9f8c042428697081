"""`tollkeeper replay` against a running service: each line billed once, whatever happens."""

import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from tests.acceptance.conftest import Service, clean_environment

from tollkeeper.client.credits import CreditsClient
from tollkeeper.client.terminal import Screen
from tollkeeper.client.trace import Terms, TraceUnbillable
from tollkeeper.kernel.clock import SystemClock
from tollkeeper.kernel.ids import system_entropy
from tollkeeper.replay import Replay, ReplayOptions

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"


def write_trace(folder: Path, *, rows: int, bad: str = "") -> Path:
    lines = [f"2024-01-01 00:00:{n % 60:02}.5,{100 + n},{n % 7}\r\n" for n in range(rows)]
    path = folder / "trace.csv"
    path.write_text(HEADER + "".join(lines[:3]) + bad + "".join(lines[3:]), newline="")
    return path


def cost_of(rows: int) -> int:
    return sum(100 + n + 3 * (n % 7) for n in range(rows))


def test_a_second_run_charges_nothing(service: Service, tmp_path: Path) -> None:
    trace = write_trace(tmp_path, rows=200)
    command = ("replay", str(trace), "--accounts", "7", "--json")
    first, second = (service.run(*command) for _ in range(2))

    assert (first.code, second.code) == (0, 0)
    assert first.json()["charged"] == 200
    assert first.json()["charged_units"] == cost_of(200)
    assert (second.json()["charged"], second.json()["replayed"]) == (0, 200)
    for report in (first.json(), second.json()):
        audit = report["audit"]
        assert isinstance(audit, dict)
        assert audit["conserved"] is True
        assert audit["consumed"] == audit["topped_up"] == cost_of(200)
        assert audit["balances"] == 0
        assert audit["faults"] == []
    assert first.err == ""

    shown = service.run("replay", str(trace), "--accounts", "7", "--run", "again")

    assert shown.code == 0
    assert "charged       200" in shown.out
    assert f"{cost_of(200):,}" in shown.out


def test_holds_are_captured_at_the_true_cost_and_once(service: Service, tmp_path: Path) -> None:
    trace = write_trace(tmp_path, rows=60)
    command = ("replay", str(trace), "--accounts", "3", "--hold", "--run", "held", "--json")
    first, second = (service.run(*command).json() for _ in range(2))
    audit = first["audit"]
    accounts = first["accounts"]
    assert isinstance(audit, dict)
    assert isinstance(accounts, list)
    kinds = service.run("credits", "history", str(accounts[0]), "--json").json()["items"]
    assert isinstance(kinds, list)

    assert (60, cost_of(60)) == (first["charged"], first["charged_units"])
    assert (0, 60) == (second["charged"], second["replayed"])
    assert (cost_of(60), 0, []) == (audit["consumed"], audit["balances"], audit["faults"])
    assert {"topup", "hold", "capture"} == {each["kind"] for each in kinds}


def test_a_malformed_line_is_named_and_nothing_is_billed(service: Service, tmp_path: Path) -> None:
    trace = write_trace(tmp_path, rows=10, bad="2024-01-01 00:00:00,12,many\r\n")
    before = service.run("credits", "verify", "--json").json()
    refused = service.run("replay", str(trace))
    as_json = service.run("replay", str(trace), "--json")

    assert refused.code == as_json.code == 1
    assert "line 5: GeneratedTokens is not a whole number: 'many'" in refused.err
    assert as_json.problem()["type"] == "urn:tollkeeper:problem:trace-malformed"
    assert service.run("credits", "verify", "--json").json() == before

    skipped = service.run("replay", str(trace), "--skip-bad", "--accounts", "3", "--json")

    assert skipped.code == 0
    assert (skipped.json()["charged"], skipped.json()["skipped"]) == (10, 1)
    assert skipped.json()["skipped_lines"] == [
        {"line": 5, "problem": "GeneratedTokens is not a whole number: 'many'"}
    ]


def test_too_small_a_topup_is_refused_by_rule_and_more_later_bills_the_rest(
    service: Service, tmp_path: Path
) -> None:
    trace = write_trace(tmp_path, rows=50)
    small = service.run("replay", str(trace), "--accounts", "2", "--topup", "1000", "--json")
    rest = service.run("replay", str(trace), "--accounts", "2", "--topup", "100000", "--json")

    assert (small.code, rest.code) == (0, 0)
    refused = small.json()["refused"]
    assert isinstance(refused, dict)
    assert refused["insufficient-credits"] > 0
    assert rest.json()["replayed"] == small.json()["charged"]
    assert rest.json()["charged"] == refused["insufficient-credits"]
    audit = rest.json()["audit"]
    assert isinstance(audit, dict)
    assert audit["topped_up"] == 202_000
    assert audit["consumed"] == cost_of(50)


def test_an_interrupted_run_says_so_and_the_next_one_continues(
    service: Service, tmp_path: Path
) -> None:
    trace = write_trace(tmp_path, rows=60)
    command = ("replay", str(trace), "--accounts", "5")
    before = service.run("credits", "verify", "--json").json()["consumed"]
    process = subprocess.Popen(
        # A second of the trace takes a second: far from done when it is interrupted.
        [sys.executable, "-m", "tollkeeper", *command, "--speed", "1x"],
        env=clean_environment(service.environment),
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_a_charge(service, before)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)

    assert process.returncode == 130
    assert "the same command continues" in error

    finished = service.run(*command, "--json").json()

    assert finished["charged"] != 0
    assert finished["replayed"] != 0
    audit = finished["audit"]
    assert isinstance(audit, dict)
    assert audit["consumed"] == audit["topped_up"] == cost_of(60)


def wait_for_a_charge(service: Service, before: object) -> None:
    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s:
        if service.run("credits", "verify", "--json").json()["consumed"] != before:
            return
    raise AssertionError("nothing was billed")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "line 1: the file is empty"),
        ("time,in,out\n1,2,3\n", "line 1: the header must name"),
        (HEADER + "x\n", "line 2: 1 columns"),
    ],
)
def test_what_is_no_trace_is_refused_even_with_skip_bad(
    service: Service, tmp_path: Path, content: str, said: str
) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(content)
    refused = service.run("replay", str(path), "--skip-bad")

    assert refused.code == 1
    assert said in refused.err


def test_wrong_usage_is_exit_2_and_a_missing_file_exit_1(service: Service, tmp_path: Path) -> None:
    trace = write_trace(tmp_path, rows=1)

    assert service.run("replay", str(trace), "--speed", "fast").code == 2
    assert service.run("replay", str(trace), "--accounts", "0").code == 2
    missing = service.run("replay", str(tmp_path / "none.csv"))

    assert missing.code == 1
    assert "cannot be read" in missing.err


def test_a_trace_with_nothing_to_bill_is_done_at_once(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(HEADER + "2024-01-01 00:00:00,0,0\r\n")
    report = service.run("replay", str(path), "--json")

    assert report.code == 0
    assert (report.json()["free"], report.json()["requests"]) == (1, 0)
    assert report.json()["latency"] is None


async def test_after_the_keys_lifetime_a_trace_is_not_billed_again(
    service: Service, tmp_path: Path
) -> None:
    trace = write_trace(tmp_path, rows=9)
    first = service.run("replay", str(trace), "--json")
    options = ReplayOptions(
        trace=trace, terms=Terms(accounts=50, price_context=1, price_generated=3)
    )
    tomorrow = ClockAhead(timedelta(hours=24, minutes=1))
    replay = Replay(
        options,
        lambda connections: CreditsClient(
            service.url,
            service.api_key,
            clock=SystemClock(),
            entropy=system_entropy,
            connections=connections,
        ),
        screen=Screen(as_json=True),
        clock=tomorrow,
    )

    assert first.code == 0
    with pytest.raises(TraceUnbillable, match="--run NAME"):
        await replay.run()


class ClockAhead(SystemClock):
    """The machine's clock, at a later time."""

    def __init__(self, by: timedelta) -> None:
        self._by = by

    def now(self) -> datetime:
        return super().now() + self._by
