"""Log records as JSON texts."""

from __future__ import annotations

import json
import logging
import sys

from gateway.logs import JsonFormatter


def _record(message: str, *args: object, failed: bool = False) -> logging.LogRecord:
    record = logging.LogRecord("gateway.hub", logging.WARNING, "hub.py", 1, message, args, None)
    if failed:
        try:
            raise ValueError("wrong")
        except ValueError:
            record.exc_info = sys.exc_info()
    return record


def test_a_record_is_one_line_of_json() -> None:
    """What was logged comes out as fields, also where the message has line ends and quotes in it."""
    text = JsonFormatter().format(_record('job %s\nsaid "no"', "a1"))

    assert "\n" not in text
    line = json.loads(text)
    assert line["message"] == 'job a1\nsaid "no"'
    assert line["level"] == "warning"
    assert line["logger"] == "gateway.hub"
    assert line["time"].endswith("Z")
    assert "exception" not in line


def test_a_traceback_is_a_field() -> None:
    """An error's traceback doesn't tear the line apart."""
    text = JsonFormatter().format(_record("broken", failed=True))

    assert "\n" not in text
    assert "ValueError: wrong" in json.loads(text)["exception"]


def test_bytes_that_are_no_utf_8_do_not_lose_a_record() -> None:
    """A request's path is logged as it came, and no JSON can hold the lone surrogates that aiohttp makes of it."""
    text = JsonFormatter().format(_record("GET %s 404", "/caf\u00e9\udcff"))

    assert json.loads(text)["message"] == "GET /caf\u00e9? 404"
