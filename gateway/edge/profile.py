"""A hop as data: what one kind of proxy does to a request, each value with the evidence for it.

A profile is a TOML file: those that come with Outlast lie in `profiles/`, anybody else's are named by their path. Every
value is a table `{ value, evidence, note }`; `extends` names the profile that all values which are not given come from.
Times are real ones: what shortens them is `time_scale` of the edge that runs the profile.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args, get_origin, get_type_hints

from gateway.errors import ConfigurationError

EVIDENCE: Final = {
    "D": "the vendor's documentation",
    "C": "read in source code",
    "O": "observed and reported by others",
    "T": "tested by us",
    "I": "inferred from the others",
    "?": "unverified, or the sources disagree",
}
_FOLDER: Final = Path(__file__).parent / "profiles"
# `extends` that goes round in a circle would never end.
_MAX_DEPTH: Final = 8

Brand = Literal["none", "cloudflare", "nginx", "alb", "heroku", "api-gateway"]


@dataclass(frozen=True, slots=True)
class Timers:
    """Seconds; 0 means that there is no such limit."""

    connect_seconds: float
    """For the origin to accept a connection."""
    ack_seconds: float
    """For the origin's kernel to acknowledge the whole request."""
    first_seconds: float
    """The longest silence of the origin before its response's head is complete."""
    gap_seconds: float
    """The longest silence of the origin after that."""
    total_seconds: float
    """The longest a request may take, whatever is sent meanwhile."""
    jitter_seconds: float
    """The silence that ends a request is up to this much longer, at random."""
    write_seconds: float
    """The longest pause between two writes of a request's body to the origin."""
    origin_idle_seconds: float
    """How long a connection to the origin is kept for the next request."""
    client_idle_seconds: float
    """How long a client's connection is kept for its next request."""
    restart_every_seconds: float
    """All connections are cut this often."""
    counts: Literal["read", "passed"]
    """What ends the origin's silence: any byte read from it, or only one that has left the hop's buffer."""


@dataclass(frozen=True, slots=True)
class RequestRules:
    """What happens to a request on its way to the origin."""

    max_body_bytes: int
    max_url_bytes: int
    max_head_bytes: int
    max_in_flight: int
    max_loops: int
    """A request whose CDN-Loop names this hop so many times is refused; 0 turns the check and the header off."""
    body_buffering: Literal["none", "standard", "full"]
    """`standard` reads `inspect_bytes` of the body before the origin is asked, `full` all of it."""
    inspect_bytes: int
    origin_http: Literal["1.0", "1.1"]
    """With 1.0 there is no chunked framing and no reuse of connections."""
    reuse_race: bool
    """Whether a connection that the origin has closed is used again, as happens when both do it at once."""
    accept_encoding: str
    """What the origin is told instead of the client's Accept-Encoding; empty leaves it."""
    drop_dotted: bool
    """Whether headers with a dot in their name are dropped."""


@dataclass(frozen=True, slots=True)
class ResponseRules:
    """What happens to a response on its way to the client."""

    buffering: Literal["none", "size", "message", "close"]
    """Held: nothing; until a buffer is full; each message until the next one; everything until the end."""
    buffer_bytes: int
    buffered_types: tuple[str, ...]
    """Beginnings of content types that are held; empty: all."""
    streamed_types: tuple[str, ...]
    """Beginnings of content types that are never held."""
    streamed_methods: tuple[str, ...]
    """Methods whose responses are never held."""
    x_accel: bool
    """Whether `X-Accel-Buffering: no` turns holding off."""
    hold_head: bool
    """Whether the head waits for the first byte of the body."""
    inspect_bytes: int
    """So many bytes of the body are held before the rest is passed on as it comes."""
    interim: Literal["absolute", "reset", "drop"]
    """102 and 103: passed on without ending the silence; passed on, ending it; swallowed."""
    replaced_statuses: tuple[int, ...]
    """The origin's answers with these statuses lose their body."""
    compressed_types: tuple[str, ...]
    """Content types that are compressed for clients that take gzip."""
    compressed_statuses: tuple[int, ...]
    compress_from_bytes: int
    compress_holds: bool
    """Whether small pieces wait in the compressor until it has a block."""


@dataclass(frozen=True, slots=True)
class WebSocketRules:
    """What happens to an upgrade, and to the connection after it."""

    enabled: bool
    """Otherwise the origin sees a plain GET."""
    idle_seconds: float
    """Silence in both directions that ends the connection; 0: never."""
    idle_most_seconds: float
    """If longer, the limit is drawn from between the two for each connection."""
    extensions: bool
    """Whether Sec-WebSocket-Extensions gets through."""


@dataclass(frozen=True, slots=True)
class ErrorRules:
    """The status of each of the hop's own answers."""

    silent: int
    """The origin sent nothing."""
    cut: int
    """The origin sent a head and then nothing, and the client has got nothing yet."""
    write_stalled: int
    connect_timeout: int
    refused: int
    not_acknowledged: int
    garbled: int
    """The origin closed without an answer, or what it sent is no HTTP."""
    body_too_large: int
    url_too_long: int
    head_too_large: int
    too_many: int
    loop: int


@dataclass(frozen=True, slots=True)
class Profile:
    """One hop."""

    name: str
    title: str
    brand: Brand
    """Whose headers and error pages it has."""
    timers: Timers
    request: RequestRules
    response: ResponseRules
    websocket: WebSocketRules
    errors: ErrorRules
    evidence: Mapping[str, str] = field(default_factory=dict)
    """`timers.gap_seconds` -> `D`."""
    notes: Mapping[str, str] = field(default_factory=dict)

    def changed(self, **values: Any) -> Profile:
        """This profile with other values: `changed(timers__gap_seconds=5)`."""
        profile = self
        for path, value in values.items():
            section, _, key = path.partition("__")
            part = replace(getattr(profile, section), **{key: value}) if key else value
            profile = replace(profile, **{section: part})
        return profile


_SECTIONS: Final[dict[str, type]] = {
    "timers": Timers,
    "request": RequestRules,
    "response": ResponseRules,
    "websocket": WebSocketRules,
    "errors": ErrorRules,
}


def profile_names() -> list[str]:
    """The profiles that come with Outlast."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def load_profile(name: str) -> Profile:
    """A profile by its name, or by the path of a TOML file.

    Raises `ConfigurationError` naming the file, the key and what is allowed there.
    """
    path = Path(name) if name.endswith(".toml") or "/" in name else _FOLDER / f"{name}.toml"
    if path.parent == _FOLDER and not path.is_file():
        raise ConfigurationError(
            f"There is no edge profile {name!r}; there are {', '.join(profile_names())}, and any path to a .toml file."
        )
    return _build(path, _values(path, 0))


def _values(path: Path, depth: int) -> dict[str, Any]:
    """What the file and those that it extends say: `timers.gap_seconds` -> its table."""
    document = _read(path)
    if depth > _MAX_DEPTH:
        raise ConfigurationError(f"{path}: `extends` goes round in a circle.")
    values: dict[str, Any] = {}
    if "extends" in document:
        base = str(document.pop("extends"))
        near = path.parent / base
        values = _values(near if base.endswith(".toml") else _FOLDER / f"{base}.toml", depth + 1)
    for section, entries in document.items():
        if section in {"title", "brand"}:
            values[section] = entries
        elif section not in _SECTIONS or not isinstance(entries, dict):
            allowed = ", ".join(["extends", "title", "brand", *_SECTIONS])
            raise ConfigurationError(f"{path}: `{section}` is not one of {allowed}.")
        else:
            values |= {f"{section}.{key}": entry for key, entry in entries.items()}
    return values


@cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_text(path))
    except OSError as error:
        raise ConfigurationError(f"{path} can't be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not TOML: {error}.") from None


def _build(path: Path, values: dict[str, Any]) -> Profile:
    evidence: dict[str, str] = {}
    notes: dict[str, str] = {}
    sections: dict[str, Any] = {}
    for section, type_ in _SECTIONS.items():
        hints = get_type_hints(type_)
        known = {one.name for one in fields(type_)}
        given = {key.partition(".")[2] for key in values if key.startswith(f"{section}.")}
        for key in sorted(given - known):
            raise ConfigurationError(f"{path}: `{section}.{key}` is unknown; `{section}` has {', '.join(known)}.")
        for key in sorted(known - given):
            raise ConfigurationError(f'{path}: `{section}.{key}` is missing; begin with `extends = "direct"`.')
        chosen = {}
        for key in known:
            where = f"{section}.{key}"
            chosen[key], evidence[where], note = _entry(path, where, values[where], hints[key])
            if note:
                notes[where] = note
        sections[section] = type_(**chosen)
    brand = values.get("brand", "none")
    if brand not in get_args(Brand):
        raise ConfigurationError(f"{path}: `brand` is one of {', '.join(get_args(Brand))}, not {brand!r}.")
    return Profile(
        name=path.stem,
        title=str(values.get("title", path.stem)),
        brand=cast(Brand, brand),
        evidence=evidence,
        notes=notes,
        **sections,
    )


def _entry(path: Path, where: str, entry: Any, hint: Any) -> tuple[Any, str, str]:
    """A value, its evidence and its note, once they are what they may be."""
    if not isinstance(entry, dict) or not {"value", "evidence"} <= entry.keys() <= {"value", "evidence", "note"}:
        raise ConfigurationError(
            f'{path}: write `{where}` as {{ value = ..., evidence = "D" }}; a `note` may stand beside it.'
        )
    if entry["evidence"] not in EVIDENCE:
        tags = ", ".join(f"{tag} ({meaning})" for tag, meaning in EVIDENCE.items())
        raise ConfigurationError(f"{path}: the evidence of `{where}` is one of {tags}.")
    return _checked(path, where, entry["value"], hint), str(entry["evidence"]), str(entry.get("note", ""))


def _checked(path: Path, where: str, value: Any, hint: Any) -> Any:
    expected: str
    if get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
        expected = f"one of {', '.join(map(str, get_args(hint)))}"
    elif get_origin(hint) is tuple:
        inner = get_args(hint)[0]
        if isinstance(value, list) and all(type(one) is inner for one in value):
            return tuple(value)
        expected = f"a list of {'numbers' if inner is int else 'texts'}"
    elif hint is float:
        if type(value) in {int, float} and value >= 0:
            return float(value)
        expected = "a number of seconds, 0 for no limit"
    elif hint is int:
        if type(value) is int and value >= 0:
            return value
        expected = "a whole number"
    elif type(value) is hint:
        return value
    else:
        expected = {bool: "true or false", str: "a text"}[hint]
    raise ConfigurationError(f"{path}: `{where}` is {expected}, not {value!r}.")
