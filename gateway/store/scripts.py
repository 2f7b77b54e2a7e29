"""Keys and scripts: what things are called in Redis, and how a Lua file gets there.

A script is sent by its SHA-1 and, where the server doesn't know it yet, once as text: so old and new releases can share
one Redis during a deploy. Every script may be sent twice, since a lost reply makes the client send it again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from redis.exceptions import NoScriptError

from gateway.tokens import split_owner

_FOLDER: Final = Path(__file__).parent / "lua"
# With `maxmemory` reached these write no more: nothing new is taken. All others do: what was accepted is finished.
_NEEDS_ROOM: Final = frozenset({"create", "enqueue", "extend", "reserve", "seal"})


@dataclass(frozen=True, slots=True)
class Script:
    """One Lua file with the shared parts that its first line names, and its SHA-1."""

    name: str
    text: str
    sha: str

    def words(self, keys: Sequence[str], args: Sequence[Any]) -> tuple[Any, ...]:
        """The command that runs it, where it is known."""
        return ("EVALSHA", self.sha, len(keys), *keys, *args)

    async def run(self, server: Any, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Its answer from a client, or from one connection; teaches it to a server that has just started.

        Raises what redis-py does.
        """
        try:
            return await server.execute_command(*self.words(keys, args))
        except NoScriptError:
            return await server.execute_command("EVAL", self.text, len(keys), *keys, *args)


@cache
def load(name: str) -> Script:
    """Read `lua/{name}.lua` and put the `lib_*.lua` files of its `-- use:` line before it."""
    body = (_FOLDER / f"{name}.lua").read_text()
    match = re.match(r"-- use: ([a-z ]+)\n", body)
    parts = [(_FOLDER / f"lib_{part}.lua").read_text() for part in (match[1].split() if match else ())]
    flags = "#!lua\n" if name in _NEEDS_ROOM else "#!lua flags=allow-oom\n"
    text = flags + "".join([*parts, body])
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def encode_owner(owner: str) -> str:
    """An owner's name as part of a key or of a pointer: nothing in it can be `{`, `}`, `:`, `*` or `|`."""
    return quote(owner, safe="")


@dataclass(frozen=True, slots=True)
class Keys:
    """Names of all keys. All keys of one job, and all keys of one kind, share a hash tag and so a cluster slot."""

    prefix: str

    def job(self, job: str) -> list[str]:
        """KEYS of every script of the job's slot: job, events, outputs, fold, listeners, gone, live."""
        stem = f"{self.prefix}:{{{job}}}:"
        return [stem + part for part in ("job", "events", "outputs", "fold", "listeners", "gone", "live")]

    def record(self, job: str) -> str:
        """The job's record."""
        return f"{self.prefix}:{{{job}}}:job"

    def events(self, job: str) -> str:
        """The job's event log."""
        return f"{self.prefix}:{{{job}}}:events"

    def live(self, job: str) -> str:
        """The job's live channel."""
        return f"{self.prefix}:{{{job}}}:live"

    def job_of(self, key: str) -> str:
        """The job id in a job's key."""
        return key.split("{", 1)[1].split("}", 1)[0]

    def kind(self, kind: str) -> list[str]:
        """KEYS of every script of the kind's slot: queue, due, running, fair, bell, kind, waiting."""
        parts = ("queue", "due", "running", "fair", "bell", "kind", "waiting")
        return [f"{self.prefix}:{part}:{{{kind}}}" for part in parts]

    def claims(self, kind: str, worker: str) -> str:
        """The last claim of one worker, in the kind's slot."""
        return f"{self.prefix}:claims:{{{kind}}}:{encode_owner(worker)}"

    def bell(self, kind: str) -> str:
        """The list that wakes idle workers."""
        return f"{self.prefix}:bell:{{{kind}}}"

    @property
    def kinds(self) -> str:
        """Kind -> its document."""
        return f"{self.prefix}:kinds"

    @property
    def workers(self) -> str:
        """Presence: worker -> when it last said so."""
        return f"{self.prefix}:workers"

    @property
    def secret(self) -> str:
        """The key of the hash that turns an owner's Idempotency-Key into a job id."""
        return f"{self.prefix}:secret"

    @property
    def mark(self) -> str:
        """A random text: all connections that read the same one meet the same data."""
        return f"{self.prefix}:mark"

    @property
    def place(self) -> str:
        """The id of the blob store in which the jobs' files are."""
        return f"{self.prefix}:place"

    @property
    def sweeper(self) -> str:
        """Held by the process that sweeps."""
        return f"{self.prefix}:sweeper"

    def owner(self, owner: str) -> str:
        """Recent jobs of an owner's API key: its own, and those of its users, who are too many for a list each."""
        return f"{self.prefix}:jobs:{encode_owner(split_owner(owner)[0])}"

    def upload(self, upload: str) -> list[str]:
        """KEYS of every script of an upload's slot: upload, parts."""
        stem = f"{self.prefix}:{{{upload}}}:"
        return [stem + "upload", stem + "parts"]

    def uploads(self, owner: str) -> str:
        """An owner's open uploads."""
        return f"{self.prefix}:uploads:{encode_owner(owner)}"

    def dead(self, kind: str) -> str:
        """A kind's jobs that used up their attempts."""
        return f"{self.prefix}:dead:{{{kind}}}"
