"""The page and the browser client are found where they are installed."""

from __future__ import annotations

import re

import pytest

from gateway import static
from gateway.errors import ConfigurationError
from gateway.static import client_files


def test_a_source_tree_serves_the_files_that_are_edited() -> None:
    """In a source tree the folder beside the packages is served, not a copy."""
    folder = client_files()

    assert folder.name == "client_js"
    assert (folder / "client.js").is_file()


def test_an_installation_without_the_files_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken installation is a clear message, not a page of errors."""
    monkeypatch.setattr(static, "__file__", "/nowhere/gateway/static.py")

    with pytest.raises(ConfigurationError, match="install outlast again"):
        client_files()


def test_every_file_that_the_page_names_is_there() -> None:
    """The page's own links lead to files of the folder."""
    folder = client_files()
    page = (folder / "index.html").read_text(encoding="utf-8")

    named = set(re.findall(r"""(?:href|src)="/client/([^"#?]+)""", page))

    assert named
    assert not {name for name in named if not (folder / name).is_file()}
