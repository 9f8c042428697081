"""Structured logs: structlog and the standard library's loggers leave through one handler.

Events are fixed dotted names plus fields (`log.info("credits.engine_started", lanes=2)`), never
formatted sentences and never secrets; should one get in, `telemetry/masking.py` takes it out just
before the line is written. Nothing is configured at import: a process calls `configure_logging`
once. Servers that set up their own handlers must be told not to
(`uvicorn.Config(log_config=None)`, `Litestar(logging_config=None)`).

Tracebacks are plain text in both formats: the frames' local variables can hold keys and amounts.
"""

import logging
import sys
from typing import TextIO

import structlog
from structlog.types import EventDict, Processor

from tollkeeper.kernel.errors import ConfigurationError
from tollkeeper.telemetry.masking import mask_event
from tollkeeper.telemetry.request import add_request

LEVELS = ("debug", "info", "warning", "error", "critical")
FORMATS = ("auto", "console", "json")

_QUIET_LOGGERS = ("asyncio", "httpcore", "httpx")
"""Libraries whose debug output is about themselves; they speak from `warning` on."""


def configure_logging(level: str, format: str, *, stream: TextIO | None = None) -> None:  # noqa: A002
    """Send all logs of this process to `stream` (standard error).

    `format` "auto" means lines for people when `stream` is a terminal, JSON otherwise.

    Raises:
        ConfigurationError: an unknown level or format.
    """
    if level not in LEVELS:
        raise ConfigurationError(problem=f"The log level must be one of {', '.join(LEVELS)}.")
    if format not in FORMATS:
        raise ConfigurationError(problem=f"The log format must be one of {', '.join(FORMATS)}.")
    target = sys.stderr if stream is None else stream
    is_console = format == "console" or (format == "auto" and target.isatty())
    number = getattr(logging, level.upper())

    structlog.configure(
        processors=[*_shared_processors(), structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(_formatter(is_console=is_console, colours=target.isatty()))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    for name in _QUIET_LOGGERS:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
    logging.captureWarnings(True)


def _shared_processors() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        add_request,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]


def _formatter(*, is_console: bool, colours: bool) -> logging.Formatter:
    if is_console:
        plain = structlog.dev.plain_traceback
        renderer: Processor = structlog.dev.ConsoleRenderer(
            colors=colours, exception_formatter=plain
        )
    else:
        renderer = structlog.processors.JSONRenderer()
    processors: list[Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        mask_event,  # after it nothing may add to an event
        renderer,
    ]
    foreign: list[Processor] = [
        *_shared_processors(),
        structlog.stdlib.ExtraAdder(),
        _without_colours,
    ]
    return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=foreign, processors=processors)


def _without_colours(_: object, __: str, event: EventDict) -> EventDict:
    """Drop uvicorn's second copy of its message, which carries terminal codes."""
    event.pop("color_message", None)
    return event
