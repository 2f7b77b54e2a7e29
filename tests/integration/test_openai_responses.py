"""OpenAI's own packages against the door's responses: whole, in the background, followed, cut, resumed, cancelled."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic import BaseModel

from gateway.store import Store
from tests.faults import PATIENCE_SECONDS, wait_until
from tests.llm_jobs import llm_worker
from tests.processes import program
from tests.serving import AS_OTHER, KEY, KEYS, Gateway, gateway_for
from tests.token_source import MODEL, TokenSource

SCRIPT = Path(__file__).parents[2] / "client_js" / "tests" / "openai-door.js"
NODE = shutil.which("node")


@pytest.fixture
async def gateway(
    store: Store, source: TokenSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Gateway]:
    """A gateway that cuts where it is asked to, and a worker that asks the model server."""
    async with (
        gateway_for(store, tmp_path / "data", api_keys=KEYS, dev=True, run_quiet_seconds=0.4) as gateway,
        llm_worker(store, gateway.blobs, source, monkeypatch),
    ):
        yield gateway


def package(gateway: Gateway) -> openai.AsyncOpenAI:
    """The package as its users have it."""
    return openai.AsyncOpenAI(base_url=f"{gateway.url}/openai/v1", api_key=KEY, max_retries=0)


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    """The same, closed at the end."""
    async with package(gateway) as client:
        yield client


async def followed(
    client: openai.AsyncOpenAI,
    response: str,
    after: int | None = None,
    heard: list[ResponseStreamEvent] | None = None,
) -> list[ResponseStreamEvent]:
    """A response's events, to its end; in `heard` each is as soon as it has come."""
    more: dict[str, Any] = {} if after is None else {"starting_after": after}
    heard = [] if heard is None else heard
    async for event in await client.responses.retrieve(response, stream=True, **more):
        heard.append(event)
    return heard


def numbers(events: list[ResponseStreamEvent]) -> list[int]:
    """Their sequence numbers."""
    return [event.sequence_number for event in events]


def said(events: list[ResponseStreamEvent]) -> str:
    """The text of their deltas."""
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


async def test_a_response_comes_whole(client: openai.AsyncOpenAI, source: TokenSource) -> None:
    """Text, status and usage; instructions and parameters reach the model server in its own words."""
    response = await client.responses.create(
        model=MODEL,
        instructions="Be short.",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "What is it?"}]},
            {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "42"},
        ],
        max_output_tokens=50,
        reasoning={"effort": "low"},
        metadata={"page": "7"},
        tools=[{"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": True}],
    )

    assert (response.status, response.output_text, response.instructions) == ("completed", source.text, "Be short.")
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (7, 5)
    assert (response.metadata, response.tools[0].type) == ({"page": "7"}, "function")
    [asked] = source.seen
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    assert asked["messages"] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ]
    assert (asked["max_completion_tokens"], asked["reasoning_effort"]) == (50, "low")
    function = {"name": "look", "parameters": {"type": "object"}, "strict": True}
    assert asked["tools"] == [{"type": "function", "function": function}]
    assert not {"responses", "metadata", "input", "background"} & asked.keys()


async def test_a_stream_has_every_event_in_its_place(client: openai.AsyncOpenAI, source: TokenSource) -> None:
    """The package's own accumulation of events gives the response, reasoning and tool calls in their order."""
    source.reasoning, source.tool_calls = ["Hm."], [("look", ['{"a"', ":1}"])]
    source.finish_reason = "tool_calls"
    async with client.responses.stream(model=MODEL, input="What?") as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()

    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert [output.type for output in final.output] == ["reasoning", "message", "function_call"]
    assert final.output_text == source.text
    assert [event.arguments for event in events if event.type == "response.function_call_arguments.done"] == ['{"a":1}']
    whole = await client.responses.retrieve(final.id)
    last = events[-1]
    assert last.type == "response.completed"
    assert [output.to_dict()["id"] for output in whole.output] == [
        output.to_dict()["id"] for output in last.response.output
    ]
    assert whole.output_text == source.text


async def test_structured_output_is_parsed_by_the_package(client: openai.AsyncOpenAI, source: TokenSource) -> None:
    """The schema goes to the model server in a chat's form."""

    class Answer(BaseModel):
        value: int

    source.tokens = ['{"value"', ": 42}"]

    response = await client.responses.parse(model=MODEL, input="What?", text_format=Answer)

    assert response.output_parsed == Answer(value=42)
    assert source.seen[0]["response_format"]["json_schema"]["schema"]["properties"] == {
        "value": {"title": "Value", "type": "integer"}
    }


async def test_a_response_in_the_background_is_fetched_later(client: openai.AsyncOpenAI, source: TokenSource) -> None:
    """It is answered at once, goes on by itself, and is there when it has ended."""
    source.hold_after = 1
    response = await client.responses.create(model=MODEL, input="What?", background=True)
    assert response.status in {"queued", "in_progress"}

    async def status() -> str | None:
        return (await client.responses.retrieve(response.id)).status

    async def runs() -> bool:
        return await status() == "in_progress"

    async def done() -> bool:
        return await status() == "completed"

    await wait_until(runs, what="it runs")
    source.go.set()
    await wait_until(done, what="the end")
    assert (await client.responses.retrieve(response.id)).output_text == source.text


async def test_a_cut_stream_goes_on_after_its_last_event(client: openai.AsyncOpenAI, source: TokenSource) -> None:
    """With `starting_after` each event comes once, the numbers of both halves are those of an uncut stream."""
    source.tokens, source.hold_after = [f"{number} " for number in range(40)], 20
    source.pause_seconds = 0.005
    before: list[ResponseStreamEvent] = []

    async def follow() -> None:
        stream = await client.responses.create(
            model=MODEL, input="Count.", background=True, stream=True, extra_query={"cut": "0.8"}
        )
        async for event in stream:
            before.append(event)  # noqa: PERF401 - what came before the cut must be there after it

    with pytest.raises((openai.APIError, httpx.HTTPError)):
        await follow()
    source.go.set()
    created = before[0]
    assert created.type == "response.created"
    after = await followed(client, created.response.id, before[-1].sequence_number)

    assert 0 < len(said(before)) < len(source.text)
    assert said(before) + said(after) == source.text
    uncut = await followed(client, created.response.id)
    assert numbers(before) + numbers(after) == numbers(uncut)
    assert sorted(set(numbers(uncut))) == numbers(uncut)
    assert after[-1].type == "response.completed"
    assert source.asked == 1


async def test_every_place_to_go_on_from_gives_the_rest(
    client: openai.AsyncOpenAI, source: TokenSource, store: Store, tmp_path: Path
) -> None:
    """Also in the midst of an event of the log, and from another gateway."""
    source.reasoning, source.tool_calls = ["Hm."], [("look", ["{}"])]
    response = await client.responses.create(model=MODEL, input="What?")
    uncut = await followed(client, response.id)

    async with gateway_for(store, tmp_path / "data", api_keys=KEYS) as other, package(other) as elsewhere:
        for place, event in enumerate(uncut):
            rest = await followed(elsewhere, response.id, event.sequence_number)
            assert [one.to_dict() for one in rest] == [one.to_dict() for one in uncut[place + 1 :]]


async def test_a_cancel_ends_a_response_and_the_upstreams_stream(
    client: openai.AsyncOpenAI, source: TokenSource
) -> None:
    """Its status says so, what was said stays, and the model server sees its caller go."""
    source.hold_after = 2
    response = await client.responses.create(model=MODEL, input="What?", background=True)
    heard: list[ResponseStreamEvent] = []
    following = asyncio.create_task(followed(client, response.id, heard=heard))
    await wait_until(lambda: said(heard) == "The answer", what="the first tokens")

    cancelled = await client.responses.cancel(response.id)

    assert (cancelled.status, cancelled.output_text) == ("cancelled", "The answer")
    await wait_until(lambda: source.cancelled == 1, what="the upstream sees it")
    last = (await following)[-1]
    assert last.type == "response.incomplete"
    assert last.response.status == "cancelled"


async def test_a_failure_keeps_what_was_said(client: openai.AsyncOpenAI, source: TokenSource) -> None:
    """The response tells its code, and the text up to then."""
    source.end_after = 2
    response = await client.responses.create(model=MODEL, input="What?", background=True)
    events = await followed(client, response.id)

    assert events[-1].type == "response.failed"
    failed = await client.responses.retrieve(response.id)
    assert failed.error is not None
    assert (failed.status, failed.error.code, failed.output_text) == ("failed", "llm_broke_off", "The answer")


async def test_a_lost_worker_is_told_to_those_who_have_read_its_text(
    store: Store, source: TokenSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their stream raises, and whoever begins anew gets the new answer alone, in the same numbers as everybody."""
    source.hold_after = 2
    async with gateway_for(store, tmp_path / "data", api_keys=KEYS) as gateway, package(gateway) as client:
        async with llm_worker(store, gateway.blobs, source, monkeypatch):
            response = await client.responses.create(model=MODEL, input="What?", background=True)
            heard: list[ResponseStreamEvent] = []
            following = asyncio.create_task(followed(client, response.id, heard=heard))
            await wait_until(lambda: said(heard) == "The answer", what="the first tokens")
            last = heard[-1].sequence_number
        source.hold_after = None
        async with llm_worker(store, gateway.blobs, source, monkeypatch):
            with pytest.raises(openai.APIError, match="midst of this answer") as broken:
                await following
            assert broken.value.code == "worker_lost"
            again = await followed(client, response.id)
            with pytest.raises(openai.APIError, match="midst of this answer"):
                await followed(client, response.id, last)

    assert said(again) == source.text
    assert [event.type for event in again][:2] == ["response.created", "response.in_progress"]


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type"),
        ({"input": [{"role": "user", "content": [{"type": ["x"]}]}]}, "input.0.content.0.type"),
        ({"input": None}, "input"),
        ({"background": "yes"}, "background"),
    ],
)
async def test_what_no_model_server_can_do_is_refused(gateway: Gateway, asked: dict[str, Any], field: str) -> None:
    """400 names it; it is never ignored."""
    body = {"model": MODEL, "input": "What?"} | asked
    answer = await gateway.post("/openai/v1/responses", json=body, headers={"Authorization": f"Bearer {KEY}"})

    assert (answer.status, answer.json()["error"]["param"]) == (400, field)


async def test_a_response_is_its_owners_alone(gateway: Gateway, client: openai.AsyncOpenAI) -> None:
    """For everybody else it isn't there."""
    response = await client.responses.create(model=MODEL, input="What?")

    answer = await gateway.get(f"/openai/v1/responses/{response.id}", headers=AS_OTHER)
    beyond = await gateway.get(
        f"/openai/v1/responses/{response.id}?starting_after=5", headers={"Authorization": f"Bearer {KEY}"}
    )

    assert (answer.status, beyond.status) == (404, 400)


@pytest.mark.skipif(NODE is None, reason="there is no Node here")
async def test_the_javascript_package_works_as_well(gateway: Gateway, source: TokenSource) -> None:
    """Chats whole and streamed, models, a cancel, and a background stream that is cut and resumed."""
    source.tokens, source.hold_after, source.hold_from = [f"{number} " for number in range(20)], 10, 3
    command = (str(NODE), str(SCRIPT), f"{gateway.url}/openai/v1", KEY, MODEL)
    async with program(*command) as process, asyncio.timeout(2 * PATIENCE_SECONDS):
        assert process.stdout is not None
        was_cut = await process.stdout.readline()
        source.go.set()
        printed, complained = await process.communicate()

    assert (was_cut, process.returncode) == (b"cut\n", 0), complained.decode()
    told = json.loads(printed)
    assert told["models"] == ["another", MODEL]
    assert told["whole"] == told["streamed"] == source.text
    assert 0 < len(told["before"]) < len(source.text)
    assert told["before"] + told["after"] == source.text
    assert (told["fetched"], told["cancelled"]) == (source.text, "cancelled")
    assert told["refused"] == {"name": "NotFoundError", "status": 404}
