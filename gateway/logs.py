"""How log records look: one line each for people, or one JSON text each for machines."""

from __future__ import annotations

import logging
from typing import Literal

from pydantic_core import to_json

from gateway.errors import encodable
from gateway.protocol import format_time


class JsonFormatter(logging.Formatter):
    """One JSON text per record: time, level, logger, message, and the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": format_time(int(record.created * 1000)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            # A request's path stands in it, whatever its bytes were.
            "message": encodable(record.getMessage()),
        }
        if record.exc_info:
            line["exception"] = encodable(self.formatException(record.exc_info))
        return to_json(line, fallback=str).decode()


def configure(log_format: Literal["text", "json"]) -> None:
    """Send all records from INFO on to standard error."""
    handler = logging.StreamHandler()
    if log_format == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
