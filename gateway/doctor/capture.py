"""What the user brings: an address, a curl command, a HAR file, or the text of an error; told apart and read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from gateway.doctor.curl import is_curl, parse_curl
from gateway.doctor.finding import Finding
from gateway.doctor.har import is_har, worst_of
from gateway.doctor.observation import Observation
from gateway.doctor.redact import redact, redact_url
from gateway.doctor.signatures import recognize
from gateway.doctor.texts import judge_text
from gateway.errors import InvalidInput

Source = Literal["url", "curl", "har", "text"]

_MOST_TEXT_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Captured:
    """A failure to look into: what can be asked, and what was seen already."""

    source: Source
    summary: str
    url: str = ""
    method: str = "GET"
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    files: tuple[str, ...] = ()
    """Files that the request sends and that are not here: it is not repeated."""
    insecure: bool = False
    file: str = ""
    """The file that it was read from, if it was one."""
    seen: Observation | None = None
    finding: Finding | None = None
    secrets: tuple[str, ...] = ()

    @property
    def host(self) -> str:
        """The host in the address, empty without one."""
        return urlsplit(self.url).hostname or ""


def capture(targets: Sequence[str], read_stdin: Callable[[], str]) -> Captured:
    """Read what the command line names: an address, `-` for standard input, a file, or a quoted curl command.

    An address beside a text says whom the failing request was sent to.

    Raises `InvalidInput` for what is none of these.
    """
    urls = [target for target in targets if target.lower().startswith(("http://", "https://"))]
    others = [target for target in targets if target not in urls]
    if len(urls) > 1 or len(others) > 1:
        raise InvalidInput("Give one address, and at most one text beside it; --compare takes a second address.")
    url = checked_url(urls[0]) if urls else ""
    if not others:
        return Captured("url", redact_url(url), url) if url else _from_text(read_stdin(), "")
    if others[0] == "-":
        return _from_text(read_stdin(), url)
    if is_curl(others[0]) or "\n" in others[0]:
        return _from_text(others[0], url)
    return replace(_from_text(_read(others[0]), url), file=others[0])


def _read(target: str) -> str:
    path = Path(target)
    try:
        if path.stat().st_size > _MOST_TEXT_BYTES:
            raise InvalidInput(f"{target} is larger than 64 MB; record only the request that fails.")
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        raise InvalidInput(
            f"{target[:200]!r} is neither an address (http://, https://), nor a file, nor a curl command."
        ) from None


def _from_text(text: str, url: str) -> Captured:
    if not text.strip():
        raise InvalidInput("There is nothing to look into; give an address, or the text of the error.")
    if is_curl(text):
        return _from_curl(text)
    if is_har(text):
        return _from_har(text)
    host = urlsplit(url).hostname or ""
    finding, seen = judge_text(text, host)
    lines = [line for line in redact(text.strip()).splitlines() if line.strip()]
    more = f" (and {len(lines) - 1} lines more)" if len(lines) > 1 else ""
    return Captured("text", " ".join(lines[0].split())[:120] + more, url, seen=seen, finding=finding)


def _from_curl(text: str) -> Captured:
    request = parse_curl(text)
    url = checked_url(request.url)
    return Captured(
        "curl",
        f"{request.method} {redact_url(url)}",
        url,
        request.method,
        request.headers,
        request.body,
        tuple(request.files),
        request.insecure,
        secrets=(*request.secrets, *secrets_of(request.headers)),
    )


def _from_har(text: str) -> Captured:
    url, headers, body, seen = worst_of(text)
    elapsed = f" after {seen.elapsed_seconds:.1f} s" if seen.elapsed_seconds is not None else ""
    return Captured(
        "har",
        f"{seen.method} {redact_url(url)} -> {seen.status or 'no answer'}{elapsed}",
        checked_url(url),
        seen.method,
        {name: value for name, value in headers.items() if name.lower() in _REPEATED},
        body or b"",
        () if body is not None else ("the request's body",),
        seen=seen,
        finding=recognize(seen),
        secrets=tuple(secrets_of(headers)),
    )


# What of a browser's request matters for what comes back; the rest is about the browser.
_REPEATED = frozenset({"accept", "authorization", "cookie", "content-type", "last-event-id", "user-agent", "prefer"})


def secrets_of(headers: Mapping[str, str]) -> list[str]:
    """The values of headers that must not be told, word by word; those of ordinary headers may be."""
    lines = {f"{name}: {value}": value for name, value in headers.items()}
    hidden = [value for line, value in lines.items() if redact(line) != line]
    return [word for value in hidden for word in value.replace(";", " ").replace("=", " ").split() if len(word) >= 8]


def checked_url(url: str) -> str:
    """The address, if it is one that can be asked. Raises `InvalidInput`."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise InvalidInput(f"{redact_url(url)!r} is no address; it begins with http:// or https://.") from None
    if parts.scheme.lower() not in {"http", "https"} or not parts.hostname or port == 0:
        raise InvalidInput(f"{redact(url)[:200]!r} is no address; it begins with http:// or https://.")
    return url
