"""The log: one event a line, as JSON or for people, on stderr."""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

import structlog

from fermi.config import LogSettings


def configure_logging(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Send fermi's events, and those of the libraries below it, to ``stream`` (stderr) in the form that was asked for.

    A JSON line has ``timestamp``, ``level``, ``message`` and what belongs to the event.
    """
    stream = sys.stderr if stream is None else stream
    as_json = settings.format == "json" or (settings.format == "auto" and not stream.isatty())
    level = logging.getLevelName(settings.level.upper())
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.EventRenamer("message"),
    ]
    last: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info, _in_order, structlog.processors.JSONRenderer(ensure_ascii=False)]
        if as_json
        else [_for_people(stream)]
    )
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)


def _in_order(logger: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """The same in every line first."""
    first = {name: event.pop(name, None) for name in ("timestamp", "level", "message")}
    return {**first, **event}


def _for_people(stream: TextIO) -> structlog.dev.ConsoleRenderer:
    # A plain traceback: one that shows local variables would show prompts and keys.
    plain = structlog.dev.plain_traceback
    return structlog.dev.ConsoleRenderer(
        event_key="message",
        colors=stream.isatty(),
        exception_formatter=plain,
        repr_native_str=True,  # values may be a client's: nothing in them commands a terminal
    )


def logger() -> Any:
    """The server's own logger."""
    return structlog.get_logger("fermi.server")
