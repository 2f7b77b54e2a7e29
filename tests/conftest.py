"""Fixtures for all tests: a real Valkey per test process, a random key prefix per test, a connected store.

An async test is also held to leave nothing in its event loop.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final, Protocol, Self

import pytest

from gateway.embedded import EmbeddedValkey
from tests.faults import wait_until
from tests.patient_clock import PatientClock
from tests.redis_servers import RedisCluster, SentinelTrio

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.blobs import Blobs
    from gateway.store import Store


# What takes longest comes first, and the quickest files last: they fill the end of a run that several processes share.
_ORDER: Final = {"ocr": 0, "integration": 1, "unit": 3}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests by their folder; within a folder nothing changes."""
    items.sort(key=lambda item: _ORDER.get(item.path.parent.name, 2))


@pytest.fixture(autouse=True)
def _nothing_left_behind(request: pytest.FixtureRequest) -> None:
    """Fail an async test that leaves a task, a connection or a pipe in its loop.

    As the first autouse fixture it is set up before all others, and so looks after all others are gone.
    """
    if request.node.get_closest_marker("asyncio") is not None:
        request.getfixturevalue("_empty_loop")


@pytest.fixture
async def _empty_loop() -> AsyncIterator[None]:
    """Look at what a test has left in its loop."""
    yield
    try:
        await wait_until(lambda: not _left_over(), 10)
    except AssertionError:
        pytest.fail(f"these are left over: {_left_over()}")


def _left_over() -> list[str]:
    """The tasks of this loop but for the one that asks, and the connections and pipes that it still watches."""
    loop = asyncio.get_running_loop()
    tasks = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    # Whose each watched descriptor is, only its callbacks tell.
    handles = [handle for key in loop._selector.get_map().values() for handle in key.data if handle]  # type: ignore[attr-defined]
    owners = {getattr(handle._callback, "__self__", None) for handle in handles}
    return sorted(tasks) + [
        f"{owner} from {owner.get_extra_info('sockname')} to {owner.get_extra_info('peername')}"
        for owner in owners
        if isinstance(owner, asyncio.BaseTransport)
    ]


@pytest.fixture
async def patient_clock() -> PatientClock:
    """A loop's clock for what says who is first: a moment without a core takes no time."""
    return PatientClock()


@pytest.fixture
def early_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who looks in this process begins at once: a retry is put into the queue by a look."""
    monkeypatch.setattr("gateway.store.look.GRACE_SECONDS", 0.1)


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Valkey that all tests of this process share."""
    folder = tmp_path_factory.mktemp("valkey")
    yield from _keep(lambda: EmbeddedValkey(folder, memory_bytes=512 * 1024 * 1024))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a cluster of three masters with a replica each; started for the first test that wants it."""
    folder = tmp_path_factory.mktemp("cluster")
    yield from _keep(lambda: RedisCluster(folder))


@pytest.fixture(scope="session")
def sentinel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a master with a replica and three Sentinels."""
    folder = tmp_path_factory.mktemp("sentinel")
    yield from _keep(lambda: SentinelTrio(folder))


@pytest.fixture
def redis_url(request: pytest.FixtureRequest) -> str:
    """The URL of one server, or of what a module or a test asks for:

    pytestmark = pytest.mark.parametrize("redis_url", ["valkey", "cluster"], indirect=True)
    """
    url: str = request.getfixturevalue(getattr(request, "param", "valkey"))
    return url


class _Servers(Protocol):
    @property
    def url(self) -> str: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...


def _keep(make: Callable[[], _Servers]) -> Iterator[str]:
    """Keep servers in a thread with an event loop of its own, since each test has another loop."""
    ready: Future[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = Future()
    thread = threading.Thread(target=lambda: asyncio.run(_keep_servers(make, ready)), name="the tests' Redis")
    thread.start()
    url, loop, over = ready.result(60)
    yield url
    loop.call_soon_threadsafe(over.set)
    thread.join()


async def _keep_servers(
    make: Callable[[], _Servers], ready: Future[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]]
) -> None:
    over = asyncio.Event()
    try:
        async with make() as servers:
            ready.set_result((servers.url, asyncio.get_running_loop(), over))
            await over.wait()
    except BaseException as error:
        if ready.done():
            raise
        ready.set_exception(error)


@pytest.fixture
def prefix() -> str:
    """A prefix of this test's own for the keys, so that tests share a server and see nothing of each other."""
    return f"t{secrets.token_hex(4)}"


@pytest.fixture
def lease_seconds(request: pytest.FixtureRequest) -> float:
    """How long a lease lasts: longer than any test, unless the test's mark `lease` says otherwise.

    What waits for a takeover wants a short one. Anywhere else it would lose jobs to a moment without a core.
    """
    mark = request.node.get_closest_marker("lease")
    return mark.args[0] if mark else 600.0


@pytest.fixture
async def store(redis_url: str, prefix: str, lease_seconds: float) -> AsyncIterator[Store]:
    """A store, with the kind `echo` known."""
    from gateway.documents import KindDocument
    from gateway.store import Store

    store = await Store.connect(redis_url, prefix=prefix, lease_seconds=lease_seconds)
    await store.register_kind(KindDocument(kind="echo"))
    yield store
    await store.close()


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    """An empty blob store."""
    from gateway.blobs import Blobs

    folder = tmp_path / "blobs"
    folder.mkdir()
    return Blobs.open(folder.as_uri())
