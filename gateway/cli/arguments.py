"""What several commands take: which gateway, JSON, a file to write; checked before anything is begun."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gateway.errors import InvalidInput

if TYPE_CHECKING:
    from gateway.client import Client

DEFAULT_URL: Final = "http://127.0.0.1:8080"
# A wrong address is to be told at once.
ASK_SECONDS: Final = 5.0


def add_command(subparsers: Any, name: str, handler: Any, help_: str) -> argparse.ArgumentParser:
    """Add a command that asks a gateway."""
    parser: argparse.ArgumentParser = subparsers.add_parser(name, help=help_, description=help_.capitalize() + ".")
    parser.add_argument("--url", help=f"the gateway's address (OUTLAST_URL; default: {DEFAULT_URL})")
    parser.add_argument("--key", help="the API key; better in OUTLAST_API_KEY, where other users can't see it")
    parser.set_defaults(handler=handler)
    return parser


def open_client(args: argparse.Namespace, patience_seconds: float) -> Client:
    """A client of the gateway that the arguments or the environment name."""
    from gateway.client import Client

    url = args.url or os.environ.get("OUTLAST_URL") or DEFAULT_URL
    key = args.key or os.environ.get("OUTLAST_API_KEY")
    return Client(url, api_key=key, patience_seconds=patience_seconds)


def read_input(text: str) -> dict[str, Any]:
    """The value of `--input`. Raises `InvalidInput` unless it is a JSON object."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"--input is no JSON ({error}); quote it for the shell: --input '{{\"a\": 1}}'.") from None
    if not isinstance(value, dict):
        raise InvalidInput("--input is a JSON object, such as --input '{\"a\": 1}'.")
    return value


def check_writable(path: Path | None) -> None:
    """Refuse a file that can't be written: before an hour of work, not after it."""
    if path is not None and (path.is_dir() or not os.access(path.parent, os.W_OK)):
        raise InvalidInput(f"{path} can't be written; give a file in a folder that exists.")
