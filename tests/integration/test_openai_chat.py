"""OpenAI's own Python package, unchanged but for its `base_url`, against the door: chats, models and errors."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NoReturn

import openai
import pytest
from openai.types.chat import ChatCompletionChunk
from pydantic_core import to_json

from gateway.documents import KindDocument
from gateway.errors import ConfigurationError
from gateway.handlers.context import HUB
from gateway.store import Store
from tests.faults import PATIENCE_SECONDS, wait_until
from tests.llm_jobs import ASK, llm_worker
from tests.serving import AS_ME, KEY, KEYS, Gateway, gateway_for
from tests.token_source import MODEL, TokenSource


@pytest.fixture
async def gateway(
    store: Store, source: TokenSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Gateway]:
    """A gateway with keys and a short silence, and a worker that asks the model server."""
    async with (
        gateway_for(store, tmp_path / "data", api_keys=KEYS, run_quiet_seconds=0.4, heartbeat_seconds=0.5) as gateway,
        llm_worker(store, gateway.blobs, source, monkeypatch),
    ):
        yield gateway


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    """The package as its users have it."""
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/openai/v1", api_key=KEY, max_retries=0) as client:
        yield client


Messages: Any = ASK


async def chunks(client: openai.AsyncOpenAI, **options: Any) -> list[ChatCompletionChunk]:
    """All chunks of a streamed answer."""
    stream = await client.chat.completions.create(model=MODEL, messages=Messages, stream=True, **options)
    return [chunk async for chunk in stream]


async def test_an_answer_comes_whole(client: openai.AsyncOpenAI, source: TokenSource) -> None:
    """One JSON with text, finish reason and usage; parameters reach the model server as they are."""
    answer = await client.chat.completions.create(model=MODEL, messages=Messages, temperature=0.25)

    assert answer.object == "chat.completion"
    [choice] = answer.choices
    assert (choice.message.content, choice.message.role, choice.finish_reason) == (source.text, "assistant", "stop")
    assert answer.usage is not None
    assert answer.usage.total_tokens == 12
    assert source.seen[0]["temperature"] == 0.25


async def test_an_answer_that_takes_long_is_held(
    client: openai.AsyncOpenAI, gateway: Gateway, source: TokenSource
) -> None:
    """White space keeps the connection alive, and the package doesn't mind it."""
    source.hold_after = 1
    asking = asyncio.create_task(client.chat.completions.create(model=MODEL, messages=Messages))
    await wait_until(lambda: any(not one.silent for one in gateway.app[HUB].listeners), what="white space")  # type: ignore[attr-defined]
    source.go.set()

    assert (await asking).choices[0].message.content == source.text


async def test_an_answer_is_streamed(client: openai.AsyncOpenAI, source: TokenSource) -> None:
    """Role first, then text as it comes, a finish reason, and the usage where it is asked for."""
    source.pause_seconds = 0.03

    got = await chunks(client, stream_options={"include_usage": True})

    assert {chunk.id for chunk in got} == {got[0].id}
    assert got[0].choices[0].delta.role == "assistant"
    texts = [chunk.choices[0].delta.content or "" for chunk in got if chunk.choices]
    assert "".join(texts) == source.text
    assert len([text for text in texts if text]) >= 2
    assert [chunk.choices[0].finish_reason for chunk in got if chunk.choices][-1] == "stop"
    assert got[-1].usage is not None
    assert got[-1].usage.completion_tokens == 5


async def test_a_stream_ends_as_openais_does(gateway: Gateway) -> None:
    """The last line is `[DONE]`, and without `include_usage` there is no usage."""
    answer = await gateway.post(
        "/openai/v1/chat/completions", json={"model": MODEL, "messages": ASK, "stream": True}, headers=AS_ME
    )

    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert answer.body.startswith(b"data: {")
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert b'"usage"' not in answer.body


async def test_what_is_an_operators_to_know_is_not_sent(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words about a setting stand in the log, as where one of the API's own routes meets them."""

    async def misconfigured(*_: object) -> NoReturn:
        raise ConfigurationError("OUTLAST_REDIS_URL: Redis refuses the credentials")

    monkeypatch.setattr("gateway.handlers.held.owned", misconfigured)

    answer = await gateway.post("/openai/v1/chat/completions", json={"model": MODEL, "messages": ASK}, headers=AS_ME)

    assert (answer.status, answer.json()["error"]["code"]) == (500, "internal")
    assert b"OUTLAST" not in answer.body


async def test_silence_has_heartbeats(gateway: Gateway, source: TokenSource) -> None:
    """While the model thinks, comments keep the stream alive."""
    source.hold_after = 0
    body = {"model": MODEL, "messages": ASK, "stream": True}
    async with gateway.session.post(f"{gateway.url}/openai/v1/chat/completions", json=body, headers=AS_ME) as response:
        heard = b""
        while heard.count(b":\n\n") < 3:
            heard += await asyncio.wait_for(response.content.readany(), PATIENCE_SECONDS)
        source.go.set()
        heard += await response.read()

    assert heard.endswith(b"data: [DONE]\n\n")


async def test_reasoning_and_tool_calls_are_streamed(client: openai.AsyncOpenAI, source: TokenSource) -> None:
    """In the fields where clients look for them, in order."""
    source.reasoning, source.tokens, source.finish_reason = ["Look", " it up."], [], "tool_calls"
    source.tool_calls = [("weather", ['{"city"', ': "Rome"}'])]

    got = await chunks(client)

    deltas = [chunk.choices[0].delta for chunk in got if chunk.choices]
    assert "".join((delta.model_extra or {}).get("reasoning_content", "") for delta in deltas) == "Look it up."
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    assert (calls[0].index, calls[0].id, calls[0].function and calls[0].function.name) == (0, "call_0", "weather")
    assert "".join(call.function.arguments or "" for call in calls if call.function) == '{"city": "Rome"}'
    assert got[-1].choices[0].finish_reason == "tool_calls"

    whole = await client.chat.completions.create(model=MODEL, messages=Messages)
    assert whole.choices[0].message.tool_calls is not None
    assert whole.choices[0].message.tool_calls[0].model_dump()["function"]["arguments"] == '{"city": "Rome"}'


async def test_a_long_context_passes(client: openai.AsyncOpenAI, source: TokenSource) -> None:
    """What is too large for a job's record goes along as its file."""
    long: Any = [{"role": "user", "content": "é" * 400_000}]

    await client.chat.completions.create(model=MODEL, messages=long)

    assert source.seen[0]["messages"] == long


async def test_a_body_of_countless_values_is_not_read(gateway: Gateway) -> None:
    """It would hold up everybody's streams for seconds; a long text with as many letters does not."""
    numbers = b'{"model":"m","messages":[' + b"1," * 400_000 + b"1]}"

    answer = await gateway.post("/openai/v1/chat/completions", data=numbers, headers=AS_ME)

    assert (answer.status, answer.json()["error"]["code"]) == (413, "input_too_large")


async def test_the_same_key_is_the_same_answer(client: openai.AsyncOpenAI, source: TokenSource) -> None:
    """Whole or as a stream, it is generated and paid for once."""
    key = {"Idempotency-Key": "once"}
    first = await client.chat.completions.create(model=MODEL, messages=Messages, extra_headers=key)
    again = await chunks(client, extra_headers=key)

    assert again[0].id == first.id
    assert "".join(chunk.choices[0].delta.content or "" for chunk in again if chunk.choices) == source.text
    assert source.asked == 1


async def test_models_are_listed(client: openai.AsyncOpenAI) -> None:
    """All that the model server has."""
    assert [model.id async for model in client.models.list()] == ["another", MODEL]


@pytest.mark.parametrize(
    ("refusal", "raised", "code"),
    [
        ((404, "The model `x` does not exist"), openai.NotFoundError, "model_not_found"),
        ((400, "maximum context length is 10"), openai.BadRequestError, "context_length_exceeded"),
        ((400, "temperature is too hot"), openai.BadRequestError, "llm_refused"),
        ((401, "bad key"), openai.InternalServerError, "llm_unauthorized"),
    ],
)
async def test_a_failure_is_the_packages_own_exception(
    gateway: Gateway, source: TokenSource, refusal: tuple[int, str], raised: type[openai.APIStatusError], code: str
) -> None:
    """With the status and the code that its users know, and not repeated by the package."""
    source.refusals = [(refusal[0], {"error": {"message": refusal[1]}}, {})] * 3
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/openai/v1", api_key=KEY, max_retries=2) as client:
        with pytest.raises(raised) as caught:
            await client.chat.completions.create(model=MODEL, messages=Messages)

    assert caught.value.code == code
    assert source.asked == 1


async def test_a_wrong_request_and_a_wrong_key_are_told_as_openai_does(
    gateway: Gateway, client: openai.AsyncOpenAI
) -> None:
    """400 names the parameter, 401 is an AuthenticationError, and an address that isn't served can be read as well."""
    with pytest.raises(openai.BadRequestError) as wrong:
        await client.chat.completions.create(model=MODEL, messages=Messages, n=2)
    assert wrong.value.param == "n"
    with pytest.raises(openai.AuthenticationError) as unknown:
        await client.with_options(api_key="nobody").models.list()
    assert unknown.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError):
        await client.files.list()
    answer = await gateway.post("/openai/v1/chat/completions", data=b"{", headers=AS_ME)
    assert (answer.status, answer.json()["error"]["code"]) == (400, "bad_json")


async def test_a_stream_that_fails_raises_after_its_text(client: openai.AsyncOpenAI, source: TokenSource) -> None:
    """What was said has arrived, and the reason comes with it."""
    source.end_after = 2
    heard = ""

    async def read() -> None:
        nonlocal heard
        async for chunk in await client.chat.completions.create(model=MODEL, messages=Messages, stream=True):
            heard += chunk.choices[0].delta.content or ""

    with pytest.raises(openai.APIError) as caught:
        await read()
    assert (heard, caught.value.code) == ("The answer", "llm_broke_off")


@pytest.mark.parametrize(("path", "field"), [("chat/completions", "messages"), ("responses", "input")])
async def test_a_held_request_keeps_nothing_of_its_body(store: Store, tmp_path: Path, path: str, field: str) -> None:
    """It may wait for an hour, and what it brought may be tens of megabytes."""
    mark = f"a text of {field} that stands nowhere else"
    parts = [{"type": "text", "text": mark}]
    body = to_json({"model": "m", field: [{"role": "user", "content": parts}]})
    await store.register_kind(KindDocument(kind="llm", files="optional"))
    async with gateway_for(store, tmp_path / "data") as gateway:
        asking = asyncio.create_task(gateway.post(f"/openai/v1/{path}", data=body))
        await wait_until(lambda: gateway.app[HUB].listeners)

        gc.collect()
        # This list is the test's own; a dictionary of texts alone would not be among what is collected.
        kept = [one for one in gc.get_objects() if type(one) is list and one == parts and one is not parts]

        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    assert kept == []


async def test_without_a_worker_the_door_says_what_to_start(store: Store, tmp_path: Path) -> None:
    """503, in OpenAI's form."""
    async with gateway_for(store, tmp_path / "data") as gateway:
        answer = await gateway.post("/openai/v1/chat/completions", json={"model": "m", "messages": ASK})

    assert (answer.status, answer.json()["error"]["code"]) == (503, "no_worker")
    assert "OUTLAST_LLM_URL" in answer.json()["error"]["message"]


async def test_a_reader_that_leaves_can_end_the_answer(
    client: openai.AsyncOpenAI, store: Store, source: TokenSource
) -> None:
    """With `Outlast-On-Disconnect: cancel` the job says so; otherwise the answer goes on."""
    source.hold_after = 1
    stream = await client.chat.completions.create(
        model=MODEL, messages=Messages, stream=True, extra_headers={"Outlast-On-Disconnect": "cancel"}
    )
    job = (await anext(stream)).id.removeprefix("chatcmpl-")
    await stream.close()

    assert (await store.job(job)).options.on_disconnect == "cancel"
    source.go.set()

    async def ended() -> bool:
        return (await store.job(job)).terminal

    await wait_until(ended, what="the job's end")


async def test_a_lost_worker_ends_the_stream_and_the_same_key_gives_the_new_answer(
    store: Store, source: TokenSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read can't be taken back, so the stream raises; nothing of the old answer is in the new one."""
    source.hold_after = 2
    heard = ""
    key = {"Idempotency-Key": "again"}

    async def read(client: openai.AsyncOpenAI) -> None:
        nonlocal heard
        stream = await client.chat.completions.create(model=MODEL, messages=Messages, stream=True, extra_headers=key)
        async for chunk in stream:
            heard += chunk.choices[0].delta.content or ""

    async with (
        gateway_for(store, tmp_path / "data", api_keys=KEYS) as gateway,
        openai.AsyncOpenAI(base_url=f"{gateway.url}/openai/v1", api_key=KEY, max_retries=0) as client,
    ):
        async with llm_worker(store, gateway.blobs, source, monkeypatch):
            reading = asyncio.create_task(read(client))
            await wait_until(lambda: heard == "The answer", what="the first tokens")
        source.hold_after, source.tokens = None, ["Another", " one."]
        async with llm_worker(store, gateway.blobs, source, monkeypatch):
            with pytest.raises(openai.APIError) as caught:
                await reading
            again = await chunks(client, extra_headers=key)

    assert (heard, caught.value.code) == ("The answer", "worker_lost")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in again if chunk.choices) == "Another one."
    assert source.asked == 2


async def test_a_gateway_that_stops_tells_its_readers(
    gateway: Gateway, client: openai.AsyncOpenAI, source: TokenSource
) -> None:
    """An answer that only stops coming would look like a whole one."""
    source.hold_after = 2
    stream = await client.chat.completions.create(model=MODEL, messages=Messages, stream=True)
    await anext(stream)
    await gateway.server.drain()

    with pytest.raises(openai.APIError) as caught:
        [chunk async for chunk in stream]
    assert caught.value.code == "draining"
