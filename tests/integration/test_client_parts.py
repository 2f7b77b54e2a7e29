"""The Python client's large files: in parts, past an edge's body limit, through cuts, and from a pipe."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.client import Client, File, Job
from gateway.edge import Edge, load_profile
from gateway.errors import InvalidInput, TooLarge, Unreachable, UnsupportedType
from gateway.store import Store
from tests.faults import FaultProxy
from tests.serving import Gateway, gateway_for

CONTENT = b"%PDF-1.7 " + os.urandom(3_000_000)
PART = 512 * 1024


@pytest.fixture
async def gateway(store: Store, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway without keys."""
    async with gateway_for(store, tmp_path / "blobs") as gateway:
        yield gateway


def client_of(url: str, **options: Any) -> Client:
    """A client that comes back soon."""
    return Client(url, backoff_seconds=0.02, **{"part_bytes": PART, "patience_seconds": 20} | options)


async def arrived(gateway: Gateway, job: Job) -> bytes:
    """The bytes of the job's one file, from the gateway itself; of the upload nothing is left."""
    [file] = job.document.files
    assert await gateway.blobs.newest("uploads") == {}
    return (await gateway.get(file.url)).body


class Reports:
    """What the progress was told."""

    def __init__(self) -> None:
        self.sent: list[int] = []

    def __call__(self, sent: int, total: int | None) -> None:
        assert total in {None, len(CONTENT)}
        assert not self.sent or sent > self.sent[-1], "the bar went back"
        self.sent.append(sent)


async def test_a_large_file_goes_in_parts(gateway: Gateway) -> None:
    """Each below the limit that was chosen; the progress grows all the time and ends at the whole."""
    largest = 0
    reports = Reports()
    profile = load_profile("cloudflare")
    limited = replace(profile, request=replace(profile.request, max_body_bytes=PART))
    async with Edge(limited, gateway.url) as edge, client_of(edge.url) as client:
        job = await client.submit("read", files=File(CONTENT, name="a.pdf"), on_upload=reports)
        largest = max(record.status or 0 for record in edge.requests)

    assert await arrived(gateway, job) == CONTENT
    assert reports.sent[-1] == len(CONTENT)
    assert largest < 300, "a part was refused"


@pytest.mark.parametrize("limit", [300_000, 1_000_000])
async def test_an_edge_s_413_makes_the_parts_smaller(gateway: Gateway, limit: int) -> None:
    """Without anybody having told the client the edge's limit: below the first body, and below the first part."""
    profile = load_profile("cloudflare")
    limited = replace(profile, request=replace(profile.request, max_body_bytes=limit))
    reports = Reports()
    for part_bytes in (len(CONTENT) * 2, 2_000_000):
        reports.sent.clear()
        async with Edge(limited, gateway.url) as edge, client_of(edge.url, part_bytes=part_bytes) as client:
            job = await client.submit("read", files=File(CONTENT, name="a.pdf"), on_upload=reports)

        assert await arrived(gateway, job) == CONTENT
        assert reports.sent[-1] == len(CONTENT)


async def test_cuts_in_the_middle_cost_at_most_a_part(gateway: Gateway) -> None:
    """Ten resets on the way: the file arrives whole, as one job, and nothing is sent from the start again."""
    cuts = 0
    reports = Reports()
    async with FaultProxy(gateway.url) as proxy, client_of(proxy.url) as client:

        def cut(sent: int, total: int | None) -> None:
            nonlocal cuts
            reports(sent, total)
            if sent > (cuts + 1) * 250_000 and cuts < 10:
                cuts += 1
                proxy.cut()

        job = await client.submit("read", files=File(CONTENT, name="a.pdf"), on_upload=cut)
        assert [one.id async for one in client.jobs()] == [job.id]

    assert cuts == 10
    assert await arrived(gateway, job) == CONTENT


async def test_an_edge_s_524_in_the_middle_is_gone_around(gateway: Gateway) -> None:
    """The answer of an edge that gave up says nothing of what the gateway has: it is asked."""
    async with Edge(load_profile("cloudflare"), gateway.url) as edge, client_of(edge.url) as client:
        faults = 0

        def fault(sent: int, total: int | None) -> None:
            nonlocal faults
            if sent > 1_000_000 and faults == 0:
                faults += 1
                edge.fault("524_now", method="PATCH")

        job = await client.submit("read", files=File(CONTENT, name="a.pdf"), on_upload=fault)

    assert faults == 1
    assert await arrived(gateway, job) == CONTENT


async def test_a_pipe_survives_cuts_too(gateway: Gateway) -> None:
    """Its size is not known and it can't be read twice; the part under way is kept until the gateway has it."""
    read_end, write_end = os.pipe()
    cuts = 0

    def write() -> None:
        with os.fdopen(write_end, "wb") as writer:
            writer.write(CONTENT)

    writing = asyncio.create_task(asyncio.to_thread(write))
    async with FaultProxy(gateway.url) as proxy, client_of(proxy.url) as client:

        def cut(sent: int, total: int | None) -> None:
            nonlocal cuts
            if sent > (cuts + 1) * 700_000 and cuts < 3:
                cuts += 1
                proxy.cut()

        with os.fdopen(read_end, "rb") as pipe:
            job = await client.submit("read", files=File(pipe, name="-", content_type="application/pdf"), on_upload=cut)
    await writing

    assert cuts == 3
    assert await arrived(gateway, job) == CONTENT


async def test_what_would_be_refused_is_refused_before_it_is_sent(store: Store, tmp_path: Path) -> None:
    """Too large, a type that the kind does not read: nothing of the file travels."""
    sent: list[int] = []
    async with (
        gateway_for(store, tmp_path / "blobs", max_upload_bytes=2_000_000) as gateway,
        client_of(gateway.url) as client,
    ):
        with pytest.raises(TooLarge, match="2000000"):
            await client.submit("read", files=CONTENT, on_upload=lambda now, _: sent.append(now))
        text = File(CONTENT[:1_000_000], name="a.txt")
        with pytest.raises(UnsupportedType, match="text/plain"):
            await client.submit("read", files=text, on_upload=lambda now, _: sent.append(now))
    assert sent == []


async def test_a_gateway_that_stays_away_is_given_up(gateway: Gateway) -> None:
    """The patience counts from the last byte that came through."""
    async with FaultProxy(gateway.url) as proxy, client_of(proxy.url, patience_seconds=0.3) as client:

        def go_away(sent: int, total: int | None) -> None:
            proxy.refuse()
            proxy.cut()

        with pytest.raises(Unreachable):
            await client.submit("read", files=File(CONTENT, name="a.pdf"), on_upload=go_away)


async def test_a_file_that_changes_under_way_is_named(gateway: Gateway, tmp_path: Path) -> None:
    """It became shorter: that is no error of the network."""
    path = tmp_path / "log.pdf"
    path.write_bytes(CONTENT)

    def shorten(sent: int, total: int | None) -> None:
        path.write_bytes(b"short")

    async with client_of(gateway.url) as client:
        with pytest.raises(InvalidInput, match="became shorter"):
            await client.submit("read", files=path, on_upload=shorten)
