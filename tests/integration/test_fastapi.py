"""The FastAPI application of examples/, before a gateway that asks for keys."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from examples import fastapi_app
from gateway.client import Client
from gateway.errors import Forbidden, NotFound
from gateway.store import Store
from processors import load_processors
from tests.serving import KEY, KEYS, Gateway, gateway_for
from tests.worker_jobs import working

KINDS = load_processors(["examples.word_count"])
COUNT = "/api/count"


@asynccontextmanager
async def application(gateway: Gateway, patch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    """The application as its own page sees it."""
    patch.setattr(fastapi_app, "client", Client(gateway.url, api_key=KEY))
    app = fastapi_app.app
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://app") as page:
        yield page


@pytest.fixture
async def gateway(store: Store, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway that others can reach, so that it asks for keys."""
    async with gateway_for(store, tmp_path / "blobs", api_keys=KEYS) as gateway:
        yield gateway


async def test_its_page_follows_the_one_job_that_it_was_given(
    gateway: Gateway, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the result, without a key; it can read nothing else, and end nothing."""
    key = {"Idempotency-Key": "report-2026"}
    async with application(gateway, monkeypatch) as page, working(store, gateway.blobs, KINDS.values()):
        answers = [await page.post(COUNT, json={"text": "one fish"}, headers=key) for _ in range(2)]
        given = answers[0].json()
        token = parse_qs(urlsplit(given["watch"]).query)["token"][0]
        async with Client(gateway.url, token=token) as reader:
            types = [event.type async for event in reader.events(given["id"])]
            result = await reader.result(given["id"])
            with pytest.raises(Forbidden):
                await reader.cancel(given["id"])

    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[1].json() == given, "a page that asks again gets the same job"
    assert (types[0], types[-1]) == ("queued", "succeeded")
    assert result == {"one": 1, "fish": 1}


async def test_its_page_submits_by_itself_and_goes_on_with_the_next_token(
    gateway: Gateway, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The visitor's cookie names whose jobs they are; another visitor's page can't read them, and no page lists any."""
    async with application(gateway, monkeypatch) as page, working(store, gateway.blobs, KINDS.values()):

        async def token() -> Any:
            return (await page.post("/api/token")).json()

        async with Client(gateway.url, token=token) as visitor:
            job = await visitor.submit("word-count", {"text": "one fish"})
            assert await job.result() == {"one": 1, "fish": 1}
        async with Client(gateway.url, token=token) as reloaded:
            assert [event.type async for event in reloaded.events(job)][-1] == "succeeded"
            with pytest.raises(Forbidden):
                [job async for job in reloaded.jobs()]
        async with Client(gateway.url, api_key=KEY) as owner:
            assert [job.id async for job in owner.jobs(user=page.cookies["visitor"])] == [job.id]
        page.cookies.clear()
        async with Client(gateway.url, token=token) as another:
            with pytest.raises(NotFound):
                await another.job(job)


async def test_its_page_reads_why_the_gateway_refuses(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """The problem document comes through with its status."""
    async with application(gateway, monkeypatch) as page:
        answer = await page.post(COUNT, json={"text": "one fish"})

    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_kind")
    assert answer.headers["Content-Type"] == "application/problem+json"
