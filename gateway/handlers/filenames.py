"""What a file is called and what it is: names without tricks, and types by the first bytes where nobody says one."""

from __future__ import annotations

import mimetypes
import re
import unicodedata
from typing import Final

from gateway.errors import UnsupportedType

UNKNOWN: Final = "application/octet-stream"
# What `curl --data-binary @scan.pdf` says of the file unless it is told otherwise.
FORM: Final = "application/x-www-form-urlencoded"
_MAX_NAME_BYTES: Final = 200
_MEDIA_TYPE: Final = re.compile(r"^[a-z0-9!#$&^_.+-]{1,100}/[a-z0-9!#$&^_.+-]{1,100}$", re.ASCII)
_MAGIC: Final[tuple[tuple[bytes, str], ...]] = (
    (b"%PDF-", "application/pdf"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
    (b"GIF8", "image/gif"),
)


def media_type(header: str | None) -> str | None:
    """The media type without its parameters, in lower case; None without a header, `UnsupportedType` for nonsense."""
    if header is None or not header.strip():
        return None
    named = header.split(";", 1)[0].strip().lower()
    if _MEDIA_TYPE.fullmatch(named) is None:
        raise UnsupportedType(f"{header[:80]!r} is no content type; it looks like application/pdf.")
    return named


def guess_type(name: str, first: bytes, *, declared: str = UNKNOWN) -> str:
    """The type of a file that came without one: by its first bytes, else by its name.

    Raises `UnsupportedType` for an HTML form's fields, which are no file.
    """
    for magic, content_type in _MAGIC:
        if first.startswith(magic):
            return content_type
    if first[:4] == b"RIFF" and first[8:12] == b"WEBP":
        return "image/webp"
    if declared == FORM:
        raise UnsupportedType(
            "This is an HTML form's type, which curl -d and --data-binary send by default. Add"
            " -H 'Content-Type: application/json' for JSON, or the file's own type for a file."
        )
    return mimetypes.guess_type(name)[0] or UNKNOWN


def clean_name(name: str, content_type: str = UNKNOWN) -> str:
    """A file's name without what could mislead: paths, control characters, changes of direction, endless length.

    It is shown and sent back, never used as a path.
    """
    name = re.split(r"[/\\]", name)[-1]
    name = "".join(char for char in name if unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
    # Composed after that: what is gone may have kept an accent from its letter.
    name = " ".join(unicodedata.normalize("NFC", name).split()).strip(". ")
    if len(name.encode()) > _MAX_NAME_BYTES:
        stem, dot, suffix = name.rpartition(".") if "." in name[-16:] else (name, "", "")
        room = _MAX_NAME_BYTES - len((dot + suffix).encode())
        name = stem.encode()[:room].decode(errors="ignore").rstrip(". ") + dot + suffix
    suffix = "" if content_type == UNKNOWN else mimetypes.guess_extension(content_type) or ""
    return name or f"file{suffix}"


def unique_name(name: str, taken: set[str]) -> str:
    stem, dot, suffix = name.rpartition(".") if "." in name[1:] else (name, "", "")
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{stem}-{number}{dot}{suffix}"
    return candidate
