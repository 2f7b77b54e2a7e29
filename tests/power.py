"""A Redis whose machine can lose its power: what was not synced to the disk when that happens is gone.

The kernel hands every `fsync` and `fdatasync` of the server to us before it is done (seccomp's user notification, Linux
only). So we know how much of each file was on the disk at any moment, and can keep a sync from being done at all.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from gateway.embedded import find_server
from tests.faults import wait_until
from tests.ports import free_port
from tests.redis_servers import HOST, RedisProcess

# seccomp, fsync, fdatasync: the numbers of their system calls.
_CALLS: Final = {"x86_64": (317, 74, 75), "aarch64": (277, 82, 83)}
_PR_SET_NO_NEW_PRIVS: Final = 38
_SET_MODE_FILTER: Final = 1
_FLAG_NEW_LISTENER: Final = 8
_RET_ALLOW: Final = 0x7FFF0000
_RET_USER_NOTIF: Final = 0x7FC00000
# linux/seccomp.h: struct seccomp_notif (id, pid, flags, nr, arch, instruction, args) and seccomp_notif_resp.
_NOTICE: Final = struct.Struct("QIIiIQ6Q")
_REPLY: Final = struct.Struct("QqiI")
_RECEIVE: Final = 0xC0000000 | _NOTICE.size << 16 | ord("!") << 8 | 0
_SEND: Final = 0xC0000000 | _REPLY.size << 16 | ord("!") << 8 | 1
_APPENDS: Final = {"appendonly": "yes", "appendfsync": "always"}


class PoweredRedis:
    """`async with PoweredRedis(folder) as server`: a server with an append-only file, synced at every write."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._on_disk: dict[int, int] = {}
        """By inode: how many bytes of the file have been synced."""
        self._may_sync = threading.Event()
        self._may_sync.set()
        self.held = False
        """Whether somebody waits for a sync that is held back."""

    @property
    def url(self) -> str:
        """Where it is."""
        return f"redis://{HOST}:{self.port}"

    async def __aenter__(self) -> Self:
        self._folder.mkdir(parents=True)
        options = {"port": self.port, "bind": HOST, "dir": self._folder, "save": "", **_APPENDS}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        ours, theirs = socket.socketpair()
        with (self._folder / "log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.power", str(theirs.fileno()), str(find_server()), *words),
                pass_fds=[theirs.fileno()],
                stdout=log,
                stderr=log,
            )
        theirs.close()
        _, [self._notices], _, _ = await asyncio.to_thread(socket.recv_fds, ours, 1, 1)
        ours.close()
        self._watching = threading.Thread(target=self._watch, name="syncs of a Redis")
        self._watching.start()
        await wait_until(self._answers, what="an answer of the server")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cut()

    async def _answers(self) -> bool:
        with suppress(OSError):
            _, writer = await asyncio.open_connection(HOST, self.port)
            writer.close()
            return True
        return False

    def hold_syncs(self) -> None:
        """From now on nothing reaches the disk any more; whoever syncs waits."""
        self._may_sync.clear()

    async def cut(self) -> None:
        """Take the power away: the process is gone, and of its files what had not been synced."""
        if self._process.returncode is not None:
            return
        self._process.send_signal(signal.SIGKILL)
        await self._process.wait()
        self._may_sync.set()
        await asyncio.to_thread(self._watching.join)
        os.close(self._notices)
        for path in self._folder.rglob("*"):
            if path.is_file() and path.name != "log":
                os.truncate(path, self._on_disk.get(path.stat().st_ino, 0))

    def after_the_cut(self) -> RedisProcess:
        """A server that finds what the disk had; it is to be started."""
        return RedisProcess(self._folder, self.port, _APPENDS)

    def _watch(self) -> None:
        """Do each sync in the server's place, and note what it brought to the disk; ends with the server."""
        poll = select.poll()
        poll.register(self._notices, select.POLLIN)
        while not any(happened & select.POLLHUP for _, happened in poll.poll()):
            notice = bytearray(_NOTICE.size)
            # The server may have been killed between the two calls.
            with suppress(OSError):
                fcntl.ioctl(self._notices, _RECEIVE, notice)
                id_, pid, _, _, _, _, descriptor, *_ = _NOTICE.unpack(notice)
                self._sync(Path(f"/proc/{pid}/fd/{descriptor}"))
                fcntl.ioctl(self._notices, _SEND, _REPLY.pack(id_, 0, 0, 0))

    def _sync(self, path: Path) -> None:
        file = os.open(path, os.O_RDONLY)
        try:
            there = os.fstat(file)
            self.held = not self._may_sync.is_set()
            self._may_sync.wait()
            if self._process.returncode is None:
                os.fsync(file)
                self._on_disk[there.st_ino] = there.st_size
        finally:
            os.close(file)


def can_be_watched() -> bool:
    """Whether this kernel, or the container around us, hands a process's system calls to another one."""
    if sys.platform != "linux" or platform.machine() not in _CALLS:
        return False
    return subprocess.run([sys.executable, "-m", "tests.power"], check=False, capture_output=True).returncode == 0


def _run_watched(channel: int, words: list[str]) -> None:
    """Become a server whose syncs whoever is at the channel's other end is asked for."""
    notices = _watch_own_syncs()
    with socket.socket(fileno=channel) as to_watcher:
        socket.send_fds(to_watcher, [b"!"], [notices])
    os.close(notices)
    os.execv(words[0], words)


def _watch_own_syncs() -> int:
    """Put this process's syncs before whoever reads the descriptor that is returned. Raises `OSError`."""
    seccomp, *watched = _CALLS[platform.machine()]
    # Load the call's number; jump to the end for each that is watched; allow all others.
    program = [(0x20, 0, 0, 0)]
    program += [(0x15, len(watched) - i, 0, number) for i, number in enumerate(watched)]
    program += [(0x06, 0, 0, _RET_ALLOW), (0x06, 0, 0, _RET_USER_NOTIF)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    filter_ = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    notices = libc.syscall(seccomp, _SET_MODE_FILTER, _FLAG_NEW_LISTENER, filter_)
    if notices < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return int(notices)


if __name__ == "__main__":
    if sys.argv[1:]:
        _run_watched(int(sys.argv[1]), sys.argv[2:])
    else:
        _watch_own_syncs()
