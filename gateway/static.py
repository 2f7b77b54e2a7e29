"""Where the page and the browser client lie: inside the installed package, or beside it in a source tree."""

from __future__ import annotations

from pathlib import Path

from gateway.errors import ConfigurationError


def client_files() -> Path:
    """The folder with `index.html` and the client's modules.

    Raises `ConfigurationError` if they were not installed.
    """
    here = Path(__file__).resolve().parent
    # An editable install has no `client_js` inside `gateway`: the files are read where they are edited.
    for folder in (here / "client_js", here.parent / "client_js"):
        if (folder / "index.html").is_file():
            return folder
    raise ConfigurationError("The page's files are missing from this installation; install outlast again.")
