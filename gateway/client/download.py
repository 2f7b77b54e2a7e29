"""A large body that is put together from the answers that it came in, where the connection was cut. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-", re.ASCII)


class NoPartError(Exception):
    """An answer is no part of what was begun: other content, or a hole before it."""


class Download:
    """What there is of a body. Send each request for it with `headers`, and `add` what came."""

    def __init__(self) -> None:
        self.body = bytearray()
        self._tag = ""

    @property
    def headers(self) -> dict[str, str]:
        """What asks for the rest only; for all of it where nothing names the content that there is a part of."""
        # [spec] If-Range: "if the representation is unchanged, send me the part(s) that I am requesting in Range;
        # otherwise, send me the entire representation" (RFC 9110, section 13.1.5)
        return {"Range": f"bytes={len(self.body)}-", "If-Range": self._tag} if self.body and self._tag else {}

    def add(self, status: int, headers: Mapping[str, str], content: bytes | bytearray) -> bool:
        """Take what an answer brought, whole or cut; returns whether there is more now.

        Raises `NoPartError` for what is no part of what there is, which is forgotten then.
        """
        match = _CONTENT_RANGE.match(headers.get("Content-Range", ""))
        start = 0 if status == 200 else int(match[1]) if status == 206 and match else None
        # Weak where an edge packed the body on the way: what is unpacked here is the same.
        tag = headers.get("ETag", "").removeprefix("W/")
        unasked = bool(start) and not self._tag
        if start is None or start > len(self.body) or unasked or (tag and self._tag and tag != self._tag):
            self.body.clear()
            self._tag = ""
            raise NoPartError
        before = len(self.body)
        if status == 206:
            # Only what has a name is asked for in parts, and its server has compared that.
            tag = tag or self._tag
        # A hop that doesn't know Range sends what is there already once more; under another name, or none, it may be
        # another.
        if start + len(content) > before or not tag or tag != self._tag:
            self.body[start:] = content
        self._tag = tag
        return len(self.body) > before
