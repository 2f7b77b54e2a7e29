"""The commands that run until they are stopped: their options, their banner, and what they refuse."""

from __future__ import annotations

import argparse
import io
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from gateway.cli import serve
from gateway.cli.product import Running, check_address
from gateway.cli.serve import (
    BUILT_IN,
    curl_line,
    missing_packages,
    own_command,
    print_banner,
    waiting_modules,
    worker_line,
)
from gateway.config import Settings
from gateway.errors import ConfigurationError

RUNNING = Running(
    address="http://127.0.0.1:8080",
    redis_url="unix:///some/where/valkey.sock",
    server="valkey 9.1.2",
    embedded=True,
    kinds=("ocr",),
    unfinished=0,
)


def banner(running: Running, settings: Settings | None = None, unserved: tuple[serve.BuiltIn, ...] = ()) -> str:
    """What the banner prints on a narrow terminal."""
    console = Console(file=io.StringIO(), width=60, soft_wrap=True)
    print_banner(console, settings or Settings(), running, unserved)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def parse(*words: str) -> argparse.Namespace:
    """The arguments of a command."""
    parser = argparse.ArgumentParser()
    serve.add_commands(parser.add_subparsers())
    return parser.parse_args(words)


def test_the_banner_says_where_what_and_what_next() -> None:
    """Address, kinds, server, a curl line and a worker line are there, and lines to copy are not folded."""
    text = banner(RUNNING)

    assert "http://127.0.0.1:8080/" in text
    assert "valkey 9.1.2, embedded" in text
    assert any(line.strip().startswith("curl -sSN ") and line.endswith("/ocr/jobs") for line in text.splitlines())
    assert any("--redis 'unix:///some/where/valkey.sock'" in line for line in text.splitlines())
    assert "unfinished job" not in text.replace("unfinished jobs go on at the next start", "")


def test_the_banner_tells_of_what_is_missing_and_what_goes_on() -> None:
    """A built-in kind without its packages, unfinished jobs and warnings are said."""
    running = replace(RUNNING, kinds=(), unfinished=2, warnings=("appendonly is off",))

    text = banner(running, unserved=BUILT_IN)

    assert "pip install 'outlast[ocr]'" in text
    assert "2 unfinished jobs go on" in text
    assert "appendonly is off" in text
    assert "curl" not in text


def test_the_banner_tells_openais_packages_their_base_url() -> None:
    """Only where a model can be asked."""
    assert "http://127.0.0.1:8080/openai/v1" in banner(replace(RUNNING, kinds=("llm", "ocr")))
    assert "/openai" not in banner(RUNNING)


def test_kinds_that_call_others_start_where_settings_name_some() -> None:
    """A model server for `llm`, upstreams for `http`; either can be left out."""
    both = Settings(llm_url="http://127.0.0.1:1/v1", upstreams=("http://127.0.0.1:2",))

    assert waiting_modules(Settings(), []) == []
    assert waiting_modules(both, []) == ["processors.http", "processors.llm"]
    assert waiting_modules(both, ["http"]) == ["processors.llm"]


def test_the_curl_line_names_a_document_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a source tree it is the example's scan, elsewhere the user's own; with keys it shows where one goes."""
    monkeypatch.chdir(tmp_path)
    assert "@scan.pdf " in curl_line(Settings(), "http://x")
    (tmp_path / "examples" / "documents").mkdir(parents=True)
    (tmp_path / "examples" / "documents" / "scan.pdf").touch()

    line = curl_line(Settings(api_keys="me:0123456789abcdef"), "http://x")

    assert "@examples/documents/scan.pdf " in line
    assert "Authorization: Bearer" in line
    assert "0123456789abcdef" not in line


def test_the_worker_line_shows_no_password() -> None:
    """The URL of a server that isn't ours is not printed."""
    running = replace(RUNNING, embedded=False, redis_url="redis://:secret@host/0")

    assert "secret" not in worker_line(Settings(), running)


def test_lines_to_copy_name_a_command_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`outlast` where it is on the PATH, else the path to it, as short as it can be."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.prefix", str(tmp_path / ".venv"))
    assert own_command() == str(tmp_path / ".venv" / "bin" / "outlast")

    monkeypatch.chdir(tmp_path)
    assert own_command() == ".venv/bin/outlast"

    (tmp_path / "outlast").touch(mode=0o755)
    assert own_command() == "outlast"


def test_packages_of_a_built_in_kind_are_looked_for_without_importing_them() -> None:
    """What is missing is named."""
    assert missing_packages(BUILT_IN[0]._replace(packages=("json", "no_such_package"))) == ["no_such_package"]


@pytest.mark.parametrize("command", [["gateway"], ["worker", "examples.word_count"]])
def test_a_part_alone_needs_to_know_the_redis(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway or worker by itself has no Valkey of its own, and says what to give."""
    monkeypatch.delenv("OUTLAST_REDIS_URL", raising=False)
    args = parse(*command)

    with pytest.raises(ConfigurationError, match="--redis URL"):
        args.handler(args)


@pytest.mark.parametrize("number", ["0", "-1", "many"])
def test_a_number_of_workers_is_at_least_one(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong number is refused before anything starts."""
    with pytest.raises(SystemExit):
        parse("up", "--workers", number)

    assert "--workers" in capsys.readouterr().err


def test_a_free_port_is_found_for_zero() -> None:
    """Port 0 becomes a number that everybody can be told."""
    assert check_address("127.0.0.1", 0) > 1023


def test_a_taken_port_is_named() -> None:
    """The message says what is taken and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(ConfigurationError, match=rf"Port {port} .* is taken .* --port {port + 1}"):
            check_address("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
def test_an_address_of_another_machine_is_refused(host: str) -> None:
    """Only addresses of this machine can be listened on."""
    with pytest.raises(ConfigurationError, match="no address of this machine"):
        check_address(host, 0)
