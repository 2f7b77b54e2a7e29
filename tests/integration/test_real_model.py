"""OpenAI's Python package through the door to a real model: what scripted tokens can't tell."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import ResponseStreamEvent

from gateway.store import Store
from tests.faults import wait_until
from tests.llm_jobs import llm_worker
from tests.serving import KEY, KEYS, gateway_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# The same words each time; on a machine without a GPU about twenty tokens a second.
SAME: dict[str, Any] = {"temperature": 0, "seed": 1}
COUNT: Any = [{"role": "user", "content": "1 2 3 4 5 6 7 8 9 10 11 12"}]


@dataclass
class Served:
    """Where the model is."""

    url: str


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A small model in a process of its own."""
    pytest.importorskip("xllamacpp", reason="make test SLOW=1 installs it")
    file = tmp_path_factory.mktemp("model") / "model.gguf"
    with subprocess.Popen(
        [sys.executable, "-m", "tests.model_server", str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield Served(process.stdout.readline().strip())
        process.kill()
    file.unlink()


@pytest.fixture
async def client(
    store: Store, model: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[openai.AsyncOpenAI]:
    """The package, in front of a gateway and a worker that asks the model."""
    async with (
        gateway_for(store, tmp_path / "data", api_keys=KEYS, dev=True) as gateway,
        llm_worker(store, gateway.blobs, model, monkeypatch),
        openai.AsyncOpenAI(base_url=f"{gateway.url}/openai/v1", api_key=KEY, max_retries=0) as client,
    ):
        yield client


async def test_a_chat_is_the_same_whole_and_streamed(client: openai.AsyncOpenAI) -> None:
    """Token by token it says what it says at once, with the same usage."""
    [name] = [model.id async for model in client.models.list()]
    asked: dict[str, Any] = {"model": name, "messages": COUNT, "max_tokens": 24} | SAME

    whole = await client.chat.completions.create(**asked)
    stream = await client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]

    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == whole.choices[0].message.content
    assert len([text for text in texts if text]) > 5
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 24
    assert whole.choices[0].finish_reason == "length"


def text_of(events: list[ResponseStreamEvent]) -> str:
    """What was said."""
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


async def test_a_cut_response_goes_on_after_its_last_event(client: openai.AsyncOpenAI) -> None:
    """In the background, while the model goes on: both halves are the whole answer."""
    before: list[ResponseStreamEvent] = []

    async def follow() -> None:
        stream = await client.responses.create(
            model="any",
            input="Once upon a time",
            max_output_tokens=60,
            background=True,
            stream=True,
            extra_body=SAME,
            extra_query={"cut": "2"},
        )
        async for event in stream:
            before.append(event)  # noqa: PERF401 - what came before the cut must be there after it

    with pytest.raises((openai.APIError, httpx.HTTPError)):
        await follow()
    assert before[0].type == "response.created"
    response, last = before[0].response.id, before[-1].sequence_number
    after = [event async for event in await client.responses.retrieve(response, stream=True, starting_after=last)]
    uncut = [event async for event in await client.responses.retrieve(response, stream=True)]

    assert [event.sequence_number for event in (*before, *after)] == [event.sequence_number for event in uncut]
    assert text_of(after)
    assert text_of(before) + text_of(after) == (await client.responses.retrieve(response)).output_text


async def test_a_cancel_stops_the_model(client: openai.AsyncOpenAI, model: Served) -> None:
    """Its place is free for the next one."""
    stream = await client.responses.create(model="any", input="Once upon a time", background=True, stream=True)
    async for event in stream:
        if event.type == "response.created":
            response = event.response.id
        if event.type == "response.output_text.delta":
            break
    assert (await client.responses.cancel(response)).status == "cancelled"
    await stream.close()

    async with httpx.AsyncClient() as http:

        async def is_idle() -> bool:
            slots = (await http.get(model.url.removesuffix("/v1") + "/slots")).json()
            return not any(slot["is_processing"] for slot in slots)

        await wait_until(is_idle, what="the model has stopped")


async def test_a_context_that_is_too_long_is_told(client: openai.AsyncOpenAI) -> None:
    """In OpenAI's words, whatever the server's are."""
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="any", messages=[{"role": "user", "content": "word " * 3000}])

    assert caught.value.code == "context_length_exceeded"
