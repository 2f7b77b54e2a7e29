"""A pasted curl command as a request. No I/O, and nothing of it is run by a shell."""

from __future__ import annotations

import base64
import re
import shlex
from dataclasses import dataclass, field
from typing import Final

from gateway.errors import InvalidInput

# Options of curl that take a value, beside those that are read here; all others are switches.
_WITH_VALUE: Final = frozenset(
    {
        *("-o", "--output", "-w", "--write-out", "-m", "--max-time", "--connect-timeout", "--retry", "--retry-delay"),
        *("--retry-max-time", "-x", "--proxy", "--cacert", "--cert", "--key", "--resolve", "--connect-to"),
        *("--interface", "-c", "--cookie-jar", "-D", "--dump-header", "-K", "--config", "--limit-rate", "--ciphers"),
        *("--tls-max", "-y", "--speed-time", "-Y", "--speed-limit", "--max-redirs", "-r", "--range", "-z"),
        *("--time-cond", "--unix-socket", "--expect100-timeout", "-E", "--keepalive-time", "--dns-servers"),
        *("--stderr", "--trace", "--trace-ascii"),
    }
)
_NAMED_HEADERS: Final = {
    "-b": "Cookie",
    "--cookie": "Cookie",
    "-A": "User-Agent",
    "--user-agent": "User-Agent",
    "-e": "Referer",
    "--referer": "Referer",
}
_DATA: Final = frozenset({"-d", "--data", "--data-ascii", "--data-raw", "--data-binary", "--data-urlencode"})
_FORM: Final = frozenset({"-F", "--form", "--form-string", "-T", "--upload-file"})


@dataclass(slots=True)
class CurlRequest:
    """What a curl command would send. `files` are those that it would read; they are not read here."""

    url: str = ""
    method: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    files: list[str] = field(default_factory=list)
    insecure: bool = False
    secrets: list[str] = field(default_factory=list)


def is_curl(text: str) -> bool:
    """Whether a text is a curl command."""
    return re.match(r"\s*(?:\$\s+)?curl(?:\.exe)?\s", text) is not None


def parse_curl(text: str) -> CurlRequest:
    """Read a curl command. Raises `InvalidInput` for one that names no address, or has an open quote."""
    # A browser's "copy as cURL (bash)" quotes with $'...', and both kinds break lines with a backslash or a caret.
    plain = re.sub(r"[\\^]\r?\n", " ", text.strip()).removeprefix("$ ")
    plain = re.sub(r"(?<=\s)\$'", "'", plain)
    try:
        words = shlex.split(plain)[1:]
    except ValueError as error:
        raise InvalidInput(f"The curl command can't be read ({error}); paste all of it.") from None
    request, get = CurlRequest(), False
    data: list[str] = []
    queue = [part for word in words for part in _parted(word)]
    while queue:
        word = queue.pop(0)
        if not word.startswith("-") or word == "-":
            request.url = request.url or word
            continue
        if word in {"-k", "--insecure"}:
            request.insecure = True
        elif word in {"-G", "--get"}:
            get = True
        elif word in {"-I", "--head"}:
            request.method = request.method or "HEAD"
        elif word in {"-N", "--no-buffer"} or not _takes_value(word):
            continue
        elif queue:
            value = queue.pop(0)
            _take(request, data, word, value)
    if not request.url:
        raise InvalidInput("The curl command names no address; paste all of it, the URL included.")
    if "://" not in request.url:
        request.url = f"http://{request.url}"
    body = "&".join(data)
    if get and body:
        request.url += ("&" if "?" in request.url else "?") + body
    elif data:
        request.body = body.encode()
        request.headers.setdefault("Content-Type", "application/x-www-form-urlencoded")
    request.method = request.method or ("POST" if (data or request.files) and not get else "GET")
    return request


def _parted(word: str) -> list[str]:
    """`--option=value` and `-XPOST` as two words each."""
    if word.startswith("--") and "=" in word:
        return list(word.partition("=")[::2])
    if re.match(r"-[XHdubAeFxomw].", word) and not word.startswith("--"):
        return [word[:2], word[2:]]
    return [word]


def _takes_value(word: str) -> bool:
    read = {"-X", "--request", "-H", "--header", "--json", "-u", "--user", "--url", *_NAMED_HEADERS}
    return word in read | _DATA | _FORM | _WITH_VALUE


def _take(request: CurlRequest, data: list[str], word: str, value: str) -> None:
    if word in {"-X", "--request"}:
        request.method = value.upper()
    elif word in {"-H", "--header"}:
        name, _, content = value.partition(":")
        # curl takes the length and the connection into its own hands, and so do we.
        if name.strip().lower() not in {"content-length", "connection", "accept-encoding", "host"}:
            request.headers[name.strip()] = content.strip()
    elif word == "--url":
        request.url = value
    elif word == "--json":
        data.append(value)
        request.headers.setdefault("Content-Type", "application/json")
        request.headers.setdefault("Accept", "application/json")
    elif word in _DATA:
        if value.startswith("@") and word != "--data-raw":
            request.files.append(value[1:])
        else:
            data.append(value)
    elif word in _FORM:
        request.files.append(value)
    elif word in {"-u", "--user"}:
        request.headers["Authorization"] = "Basic " + base64.b64encode(value.encode()).decode()
        request.secrets.append(value.partition(":")[2] or value)
    elif word in _NAMED_HEADERS:
        request.headers[_NAMED_HEADERS[word]] = value
