"""Ports for servers of other processes, which have to be told where to listen before they do."""

from __future__ import annotations

import itertools
import os
import secrets
import socket
from collections.abc import Iterator
from typing import Final

# Below what systems hand out by themselves (from 32768 on Linux, from 49152 elsewhere), so that none of the thousands
# of connections and servers of other tests can take a port between the asking and the listening.
_FIRST: Final = 10_000
_PER_PROCESS: Final = 2_800
_PROCESSES: Final = 8


def free_port() -> int:
    """A port that nobody listens on, and that no other process of this run of the tests is given."""
    for port in itertools.islice(_PORTS, _PER_PROCESS):
        with socket.socket() as probe:
            # What was here before may have left connections behind that are still closing.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("none of this process's ports is free")


def _own_ports() -> Iterator[int]:
    """The ports of this process, round and round, from a place of its own: somebody else's run may be under way."""
    place = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _PROCESSES
    first = _FIRST + place * _PER_PROCESS
    for offset in itertools.count(secrets.randbelow(_PER_PROCESS)):
        yield first + offset % _PER_PROCESS


_PORTS: Final = _own_ports()
