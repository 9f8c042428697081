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


CARD = "4111 1111 1111 1111"


def pay(number: str) -> None:
    raise ValueError(f"declined: {number}") from KeyError(number)


def give_up(problem: str) -> None:
    raise ConfigurationError(problem=problem)


@pytest.mark.parametrize("format_", ["json", "console"])
def test_card_number_leaves_in_no_part_of_an_event(format_: str) -> None:
    stream = io.StringIO()
    configure_logging("info", format_, stream=stream)
    log = structlog.get_logger("tollkeeper")
    with structlog.contextvars.bound_contextvars(path=f"/v1/accounts/{CARD}"):
        log.info(CARD, text=CARD, number=4111111111111111, whole=4111111111111111.0)
    log.info("nested", items=[{"a": (CARD, {CARD: [CARD]})}], object=Exception(CARD), kinds={CARD})
    log.info("deep", value=[[[[[[[[[[[CARD]]]]]]]]]]])
    log.info("stack", stack_info=True)
    try:
        pay(CARD)
    except ValueError:
        log.exception("failed")

    assert "4111" not in stream.getvalue()
    assert "****-****-****-1111" in stream.getvalue()
    assert "declined: ****-****-****-1111" in stream.getvalue()


@pytest.mark.parametrize("format_", ["json", "console"])
def test_card_number_of_another_library_leaves_as_little(format_: str) -> None:
    stream = io.StringIO()
    configure_logging("info", format_, stream=stream)
    log = logging.getLogger("uvicorn.error")
    log.info("%s and %d", CARD, 5555555555554444, extra={"card": [CARD]})
    log.warning("%(number)s", {"number": CARD})
    try:
        pay(CARD)
    except ValueError:
        log.exception("failed", stack_info=True)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn(CARD, UserWarning, stacklevel=1)

    assert "4111" not in stream.getvalue()
    assert "5555" not in stream.getvalue()
    assert 6 <= stream.getvalue().count("****-****-****-1111")


def test_value_of_a_field_that_is_called_like_a_secret_stays_here() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream=stream)
    structlog.get_logger().info(
        "web.request",
        headers={"Authorization": "Bearer hush", "Set-Cookie": "hush", "host": "here"},
        api_key="hush", token="hush", db_password="hush", client_secret="hush",
        card={"cvv": 123, "PIN": "hush", "Security_Code": ["hush"]},
        tokens=17, key_id="kept", shipping="kept",
    )  # fmt: skip

    (entry,) = entries(stream)
    assert "hush" not in stream.getvalue()
    assert {"Authorization": "***", "Set-Cookie": "***", "host": "here"} == entry["headers"]
    assert {"cvv": "***", "PIN": "***", "Security_Code": "***"} == entry["card"]
    assert ["***"] * 4 == [
        entry[name] for name in ("api_key", "token", "db_password", "client_secret")
    ]
    assert (17, "kept", "kept") == (entry["tokens"], entry["key_id"], entry["shipping"])


def test_password_of_a_dsn_stays_here_wherever_it_stands() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream=stream)
    log = structlog.get_logger()
    log.warning("database.away", dsn="postgresql://user:p@ss:w@db.example:5432/credits?a=b")
    log.warning("host=here password='a b' user=u")
    log.warning("key tk_live_0123456789abcdef0123456789abcdef")
    try:
        give_up("postgresql://user:word@db.example/credits is away")
    except ConfigurationError:
        log.exception("failed")

    dsn, pairs, key, failed = entries(stream)
    assert "postgresql://user:***@db.example:5432/credits?a=b" == dsn["dsn"]
    assert "host=here password=*** user=u" == pairs["event"]
    assert "key tk_live_***" == key["event"]
    assert "postgresql://user:***@db.example/credits is away" in str(failed["exception"])


def test_what_is_no_secret_is_written_as_it_is() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream=stream)
    fields: dict[str, object] = {
        "lanes": 2, "ratio": 0.5, "ok": True, "none": None, "items": [1, "two", {"three": 3.0}],
        "request_id": "01a20bde-8028-76e8-8fa8-1bc6b37ddf49", "at_us": 1732510015123456,
        "balance": 9_223_372_036_854_775_807, "url": "http://127.0.0.1:5004/v1/accounts",
    }  # fmt: skip
    structlog.get_logger().info("credits.engine_started", **fields)

    (entry,) = entries(stream)
    assert fields == {name: entry[name] for name in fields}
