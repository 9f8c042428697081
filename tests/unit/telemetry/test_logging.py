import io
import json
import logging
import warnings
from collections.abc import Iterator

import pytest
import structlog

from tollkeeper.kernel.errors import ConfigurationError
from tollkeeper.telemetry.logging import configure_logging


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


def entries(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def fail(token: str) -> None:
    raise ValueError(len(token))


def test_event_is_one_json_object_with_utc_time() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream=stream)
    structlog.get_logger("tollkeeper.credits").info("credits.engine_started", lanes=2)

    (entry,) = entries(stream)
    assert str(entry.pop("timestamp")).endswith("Z")
    assert {
        "event": "credits.engine_started",
        "lanes": 2,
        "level": "info",
        "logger": "tollkeeper.credits",
    } == entry


def test_standard_library_goes_the_same_way() -> None:
    stream = io.StringIO()
    configure_logging("info", "auto", stream=stream)
    logging.getLogger("uvicorn.error").warning("Port %d", 5004, extra={"attempt": 1})

    (entry,) = entries(stream)
    assert "Port 5004" == entry["event"]
    assert ("warning", "uvicorn.error", 1) == (entry["level"], entry["logger"], entry["attempt"])


def test_traceback_is_text_without_local_variables() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream=stream)
    try:
        fail(bytes.fromhex("736563726574").decode())
    except ValueError:
        structlog.get_logger().exception("web.request_failed")

    (entry,) = entries(stream)
    assert "ValueError: 6" in str(entry["exception"])
    assert "secret" not in str(entry["exception"])


def test_console_is_for_people() -> None:
    stream = io.StringIO()
    configure_logging("info", "console", stream=stream)
    structlog.get_logger().info("credits.engine_started", lanes=2)

    assert "credits.engine_started" in stream.getvalue()
    assert "lanes=2" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


def test_level_holds_for_both() -> None:
    stream = io.StringIO()
    configure_logging("warning", "json", stream=stream)
    structlog.get_logger().info("quiet")
    logging.getLogger("uvicorn").info("quiet")
    structlog.get_logger().error("loud")

    assert ["loud"] == [entry["event"] for entry in entries(stream)]


def test_configuring_again_replaces() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure_logging("info", "json", stream=first)
    configure_logging("info", "json", stream=second)
    structlog.get_logger().info("once")

    assert "" == first.getvalue()
    assert 1 == len(entries(second))


def test_warnings_are_logged() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream=stream)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old", DeprecationWarning, stacklevel=1)

    assert "DeprecationWarning: old" in str(entries(stream)[0]["event"])


@pytest.mark.parametrize(("level", "format_"), [("loud", "json"), ("info", "xml")])
def test_unknown_setting_is_refused(level: str, format_: str) -> None:
    with pytest.raises(ConfigurationError):
        configure_logging(level, format_)
