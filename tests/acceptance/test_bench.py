"""`tollkeeper bench` loads a running service and says what came of it."""

from tests.acceptance.conftest import Service


def test_a_short_run_reports_both_parts(service: Service) -> None:
    finished = service.run(
        "bench", "--seconds", "0.3", "--accounts", "20", "--connections", "5", "--batch", "10",
        "--json",
    )  # fmt: skip
    consumptions, batches = (finished.json()[part] for part in ("consumptions", "batches"))

    assert finished.code == 0, finished.err
    assert isinstance(consumptions, dict)
    assert isinstance(batches, dict)
    assert consumptions["charged"] == consumptions["requests"] > 0
    assert batches["accepted"] == batches["batches"] * 10 > 0
    assert consumptions["failed"] == batches["failed"] == {}


def test_a_wrong_key_ends_it_with_one_sentence(service: Service) -> None:
    wrong = {"TOLLKEEPER_API_KEY": "tk_wrong"}
    finished = service.run("bench", "--seconds", "0.3", "--accounts", "1", environment=wrong)

    assert finished.code == 1
    assert finished.err.splitlines()[-1].startswith("tollkeeper: ")
    assert "Traceback" not in finished.err
