"""Servers that can't be used, or are not what their URL says: an error at the start, a warning later."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import redis.asyncio as redis

from gateway.documents import KindDocument
from gateway.embedded import EmbeddedValkey
from gateway.errors import ConfigurationError, Unavailable
from gateway.store import Store
from tests.faults import FaultProxy, wait_until
from tests.gateway_process import gateway_process
from tests.jobs import begin, end, submit
from tests.ports import free_port
from tests.redis_servers import RedisCluster, RedisProcess
from tests.serving import gateway_for


@pytest.fixture
async def other_valkey(tmp_path: Path) -> AsyncIterator[str]:
    """The URL of a second server with other data."""
    async with EmbeddedValkey(tmp_path / "other") as server:
        yield server.url


async def test_two_servers_behind_one_url_are_refused_at_the_start(valkey: str, other_valkey: str, prefix: str) -> None:
    """Half of the jobs would be unknown to half of the processes. Nothing is written but each server's own mark."""
    async with FaultProxy(valkey) as proxy:
        proxy.alternate_with(other_valkey)

        with pytest.raises(ConfigurationError, match="two servers with different data answer under the same URL"):
            await Store.connect(proxy.url, prefix=prefix)

    for url in (valkey, other_valkey):
        async with redis.Redis.from_url(url) as server:
            assert await server.keys(f"{prefix}:*") == [f"{prefix}:mark".encode()]


async def test_two_servers_behind_one_url_are_noticed_while_it_runs(
    valkey: str, other_valkey: str, prefix: str, tmp_path: Path
) -> None:
    """A connection to the other server is never used, and the gateway is not ready any more."""
    async with FaultProxy(valkey) as proxy:
        store = await Store.connect(proxy.url, prefix=prefix)
        try:
            await wait_until(lambda: store.feed.connected)
            secret = await store.job_id("me", "key")
            proxy.alternate_with(other_valkey)
            for _ in range(10):
                proxy.cut()
                assert await store._client.get(store._keys.secret)
            await wait_until(lambda: store.conflict)

            assert await store.job_id("me", "key") == secret
            async with gateway_for(store, tmp_path / "blobs") as gateway:
                answer = await gateway.get("/readyz")
            assert (answer.status, answer.json()["store"]) == (503, "two servers")
            async with redis.Redis.from_url(other_valkey) as other:
                assert await other.keys(f"{prefix}:*") == [store._keys.mark.encode()]
        finally:
            await store.close()


async def test_a_server_that_lost_its_data_is_used_on(other_valkey: str, prefix: str) -> None:
    """It looks like another server at first; but the old one never comes back.

    What makes a job's id of a key is new as well, and the same for a process that has just started.
    """
    async with FaultProxy(other_valkey) as proxy:
        store = await Store.connect(proxy.url, prefix=prefix)
        try:
            before = await store.job_id("me", "key")
            async with redis.Redis.from_url(other_valkey) as behind:
                await behind.flushall()
            proxy.cut()

            async def answers() -> bool:
                try:
                    return (await store.kinds()) == {}
                except Unavailable:
                    return False

            await wait_until(answers)
            await wait_until(lambda: store.feed.connected)
            assert store.conflict is None
            late = await Store.connect(other_valkey, prefix=prefix)
            try:
                assert before != await store.job_id("me", "key") == await late.job_id("me", "key")
            finally:
                await late.close()
        finally:
            await store.close()


async def test_a_store_closes_all_its_connections_whatever_one_of_them_says(
    valkey: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that broke a moment ago is no reason to leave the others open."""
    async with FaultProxy(valkey) as proxy:
        store = await Store.connect(proxy.url, prefix=prefix)
        close = store._client.aclose

        async def meet_a_broken_one() -> None:
            await close()
            raise redis.ConnectionError("reset by peer")

        monkeypatch.setattr(store._client, "aclose", meet_a_broken_one)
        await store.close()

        await wait_until(lambda: not proxy.connections, what="the end of all connections")


async def test_a_server_that_is_too_old_is_refused(store: Store, valkey: str, prefix: str) -> None:
    """Sharded pub/sub came with 7.0; without it listeners would be deaf. Nothing is written but the server's mark."""
    info = await store.info()
    name, version = info["server"], info["version"]
    old = "6.2.0000000"[: len(version)]
    async with FaultProxy(valkey) as proxy:
        proxy.rewrite(f"{name}_version:{version}".encode(), f"{name}_version:{old}".encode())

        with pytest.raises(ConfigurationError, match=rf"{name} {old} is too old: Outlast needs Redis 7\.0 or Valkey 7"):
            await Store.connect(proxy.url, prefix=f"{prefix}-old")

    async with redis.Redis.from_url(valkey) as server:
        assert await server.keys(f"{prefix}-old:*") == [f"{prefix}-old:mark".encode()]


async def test_a_node_of_a_cluster_is_no_single_server(cluster: str, prefix: str) -> None:
    """It holds a third of the keys only."""
    node = cluster.removeprefix("redis+cluster://").split(",")[0]

    with pytest.raises(ConfigurationError, match=r"use redis\+cluster://"):
        await Store.connect(f"redis://{node}", prefix=prefix)


async def test_a_single_server_is_no_cluster(tmp_path: Path, prefix: str) -> None:
    """The message has the URL that would work."""
    async with EmbeddedValkey(tmp_path / "one", port=0) as server:
        address = server.url.removeprefix("redis://").removesuffix("/0")

        with pytest.raises(ConfigurationError, match=rf"not a node of a cluster; use redis://{address}"):
            await Store.connect(f"redis+cluster://{address}", prefix=prefix)


async def test_nodes_of_two_clusters_are_refused(cluster: str, tmp_path: Path, prefix: str) -> None:
    """Whichever is asked first would be the one whose jobs are seen."""
    async with RedisCluster(tmp_path / "other", masters=1, replicas=False) as other:
        url = f"{cluster},127.0.0.1:{other.nodes[0].port}"

        with pytest.raises(ConfigurationError, match="is of another cluster than the nodes before it"):
            await Store.connect(url, prefix=prefix)


async def test_a_cluster_is_found_by_any_of_its_nodes(cluster: str, prefix: str) -> None:
    """That one of them may be away is why a URL names several."""
    url = cluster.replace("://", f"://127.0.0.1:{free_port()},")

    store = await Store.connect(url, prefix=prefix)
    await store.close()


async def test_a_master_that_no_sentinel_knows_is_named(sentinel: str, prefix: str) -> None:
    """It is a typing error, and waiting would not help."""
    with pytest.raises(ConfigurationError, match="the Sentinels know no master 'mian'; check the name"):
        await Store.connect(sentinel.replace("/main/", "/mian/"), prefix=prefix)


async def test_nobody_to_ask_is_an_outage(prefix: str) -> None:
    """A process may start before its Redis."""
    for url in ("redis://{}", "redis+cluster://{}", "redis+sentinel://{}/main"):
        with pytest.raises(Unavailable):
            await Store.connect(url.format(f"127.0.0.1:{free_port()}"), prefix=prefix)


async def test_settings_that_break_a_promise_are_told_at_the_start_and_by_readyz(tmp_path: Path, prefix: str) -> None:
    """The gateway is ready all the same: a cache in front of jobs may be what somebody wants while trying it out."""
    server = RedisProcess(tmp_path / "s", free_port(), {"appendonly": "no", "maxmemory-policy": "allkeys-lru"})
    url = f"redis://127.0.0.1:{server.port}"
    broken = [
        "maxmemory-policy is allkeys-lru",
        "appendonly is off",
        "OUTLAST_DURABILITY is replica, and a master has none",
    ]
    await server.start()
    try:
        started = gateway_process(url, prefix, tmp_path / "data", durability="replica")
        async with (
            started as gateway,
            aiohttp.ClientSession() as session,
            session.get(f"{gateway.url}/readyz") as answer,
        ):
            assert answer.status == 200
            assert [warning.split(":")[0] for warning in (await answer.json())["warnings"]] == broken
        assert all(words in gateway.said for words in broken)
        store = await Store.connect(url, prefix=prefix, durability="disk")
        try:
            assert (await store.info())["warnings"][-1].startswith("OUTLAST_DURABILITY is disk, and appendfsync is")
        finally:
            await store.close()
    finally:
        await server.close()


async def test_the_rights_that_the_docs_name_are_enough(tmp_path: Path, prefix: str) -> None:
    """A user of Outlast's own, with a password, in a cluster; `ol` stands for the prefix."""
    page = (Path(__file__).parents[2] / "docs" / "redis.md").read_text()
    match = re.search(r"needs `(~ol:[^`]+)`", page)
    assert match is not None
    rights = match[1].replace("\\|", "|").replace("ol:*", f"{prefix}:*").split()
    async with RedisCluster(tmp_path / "cluster", masters=1, replicas=False) as cluster:
        await cluster.nodes[0].ask("ACL", "SETUSER", "outlast", "on", ">secret", *rights)
        url = f"redis+cluster://outlast:secret@127.0.0.1:{cluster.nodes[0].port}"
        store = await Store.connect(url, prefix=prefix, durability="disk")
        renewer = store.renewer("worker")
        try:
            kind = KindDocument(kind="echo")
            await store.register_kind(kind)
            await submit(store, kind)
            lease = await begin(store, "echo")
            assert not (await asyncio.to_thread(renewer.renew, [lease]))[lease.job].lost
            assert (await end(store, lease, batch=1)).terminal
            await store.present("worker", ["echo"], 1)
            await store.wait_for_work(["echo"], 0.1)
            assert await store.sweep() == 0
            assert (await store.info())["warnings"] == []
            await wait_until(lambda: store.feed.connected)
        finally:
            renewer.close()
            await store.close()

        with pytest.raises(ConfigurationError, match="refuses the credentials"):
            await Store.connect(url.replace("secret", "wrong"), prefix=prefix)
