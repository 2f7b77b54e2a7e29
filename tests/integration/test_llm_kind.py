"""The kind `llm` with a scripted model server: what it tells, what it keeps, and everything that fails."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from gateway.blobs import Blobs
from gateway.store import Store
from processors import pipeline, step
from tests.faults import wait_until
from tests.llm_jobs import ASK, KEY, Asking, llm_worker
from tests.token_source import MODEL, USAGE, TokenSource
from tests.worker_jobs import submit

pytestmark = pytest.mark.usefixtures("early_looks")
ASKS = pipeline("asks", step("llm", "ask"), max_attempts=1)


@pytest.fixture
async def asking(
    store: Store, blobs: Blobs, source: TokenSource, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Asking]:
    """A worker that asks it."""
    async with llm_worker(store, blobs, source, monkeypatch, beside=[ASKS]):
        yield Asking(store, blobs)


# --- answers ----------------------------------------------------------------------------------------------------------


async def test_a_chat_is_streamed_and_kept(asking: Asking, source: TokenSource) -> None:
    """Text comes as deltas; the result has it whole, with the finish reason and the usage."""
    job = await asking.submit(messages=ASK, temperature=0.5, stream=False)

    result = (await asking.end(job)).end_data()["result"]

    assert (result["text"], result["finish_reason"], result["usage"]) == (source.text, "stop", USAGE)
    assert await asking.said(job) == source.text
    [asked] = source.seen
    assert (asked["model"], asked["messages"], asked["temperature"]) == (MODEL, ASK, 0.5)
    assert (asked["stream"], asked["stream_options"]) == (True, {"include_usage": True})
    assert source.authorizations == [f"Bearer {KEY}"]


async def test_a_prompt_is_gone_on_with(asking: Asking, source: TokenSource) -> None:
    """A completion has the same result as a chat."""
    assert (await asking.result(prompt="The"))["text"] == source.text
    assert source.seen[0]["prompt"] == "The"


async def test_an_upstream_that_does_not_stream_serves_too(asking: Asking, source: TokenSource) -> None:
    """One JSON instead of chunks is one delta."""
    source.streams = False

    assert (await asking.result())["text"] == source.text


async def test_reasoning_is_a_channel_of_its_own(asking: Asking, source: TokenSource) -> None:
    """What the model thinks doesn't stand in its answer."""
    source.reasoning = ["Six times", " seven."]

    job = await asking.submit()
    result = (await asking.end(job)).end_data()["result"]

    assert (result["reasoning"], result["text"]) == ("Six times seven.", source.text)
    assert await asking.said(job, "reasoning") == "Six times seven."


async def test_tool_calls_are_events_and_their_arguments_deltas(asking: Asking, source: TokenSource) -> None:
    """Each call is announced once; its arguments come as they are written, and stand whole in the result."""
    source.tokens, source.finish_reason = [], "tool_calls"
    source.tool_calls = [("weather", ['{"city"', ': "Rome"}']), ("time", ["{}"])]

    job = await asking.submit()
    result = (await asking.end(job)).end_data()["result"]

    announced = [event.data for event in await asking.events(job) if event.type == "llm.tool_call"]
    assert [(one["index"], one["id"], one["name"]) for one in announced] == [
        (0, "call_0", "weather"),
        (1, "call_1", "time"),
    ]
    assert await asking.said(job, "tool_call.0") == '{"city": "Rome"}'
    assert result["channels"] == ["tool_call.0", "tool_call.1"]
    call = {"id": "call_0", "name": "weather", "arguments": '{"city": "Rome"}', "channel": "tool_call.0"}
    assert result["tool_calls"][0] == call


async def test_a_large_request_comes_as_a_file(asking: Asking, source: TokenSource) -> None:
    """A long context is no input that stands in a record."""
    long = [{"role": "user", "content": "x" * 500_000}]

    await asking.result(file=json.dumps({"messages": long}).encode(), temperature=0)

    assert (source.seen[0]["messages"], source.seen[0]["temperature"]) == (long, 0)


async def test_the_models_are_listed(asking: Asking) -> None:
    """The kind `llm.models` asks the server."""
    assert await asking.result(kind="llm.models", model="") == {"models": ["another", MODEL]}


async def test_only_allowed_models_are_asked(
    store: Store, blobs: Blobs, source: TokenSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where models are listed, another one doesn't reach the server."""
    async with llm_worker(store, blobs, source, monkeypatch, models="another"):
        asking = Asking(store, blobs)

        assert (await asking.problem())["code"] == "llm_unknown_model"
        assert await asking.result(kind="llm.models", model="") == {"models": ["another"]}
    assert source.asked == 0


def _sent(*choices: dict[str, Any], **more: Any) -> bytes:
    """A chunk as it is sent."""
    return b"data: %b\n\n" % json.dumps({"choices": list(choices)} | more).encode()


def _text(text: str, finish: str | None = None) -> dict[str, Any]:
    return {"delta": {"content": text}, "finish_reason": finish}


def _call(text: Any, **more: Any) -> dict[str, Any]:
    function = {"arguments": text} | ({"name": more.pop("name")} if "name" in more else {})
    return {"delta": {"tool_calls": [{"function": function} | more]}}


END = _sent({"delta": {}, "finish_reason": "stop"})


@pytest.mark.parametrize(
    "script",
    [
        pytest.param([_sent(_text("a €uro")), END], id="no [DONE]"),
        pytest.param([_sent(_text("a €uro", "stop")), b": so\n\n", b""], id="cut after the answer's end"),
        pytest.param([_sent(_text("a €uro")), END, b'data: {"usage": {"total_tokens": 3}}\n\n'], id="bare usage"),
        pytest.param([_sent(_text("a €uro"), usage=None), _sent(), END, b"data: [DONE] \n\n"], id="no choices"),
        pytest.param([b"\xef\xbb\xbf: hello\r\rdata:\r\n\r\n", _sent(_text("a €uro")), END], id="nothing said"),
        pytest.param([_sent(_text("a €uro"), model=None, usage={}).replace(b"\n", b"\r\n"), END], id="CRLF"),
        pytest.param([_sent(_text("a €uro")).replace(b"\n", b"\r"), b"\r", END], id="CR"),
        pytest.param(
            [*(bytes([one]) for one in 'data: {"choices": [{"text": "a €uro"}]}\r\n\r\n'.encode()), END], id="bytes"
        ),
        pytest.param(
            [_sent({"delta": {"content": [{"type": "text", "text": "a €"}]}}), _sent(_text("uro")), END], id="parts"
        ),
    ],
)
async def test_servers_say_the_same_in_different_ways(asking: Asking, source: TokenSource, script: list[bytes]) -> None:
    """However the stream is cut, ended and adorned."""
    source.script = script

    result = await asking.result()

    assert (result["text"], result["finish_reason"], source.asked) == ("a €uro", "stop", 1)


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(
            [
                _sent(_call('{"city"', index=0, id="x", name="weather")),
                _sent(_call("{", index=1, id="y", name="time")),
                _sent(_call(': "Rome"}', index=0)),
                _sent(_call("}", index=1)),
            ],
            id="interleaved",
        ),
        pytest.param(
            [
                _sent(_call('{"city": "Rome"}', id="x", name="weather")),
                _sent(_call("{}", id="y", name="time")),
            ],
            id="without an index",
        ),
        pytest.param(
            [
                _sent(_call('{"city": "Rome"}', index=0, id="x", name="weather")),
                _sent(_call("{}", index=0, id="y", name="time")),
            ],
            id="all with one index",
        ),
        pytest.param(
            [
                _sent(_call({"city": "Rome"}, index=0, id="x", name="weather")),
                _sent(_call({}, index=1, id="y", name="time")),
            ],
            id="as objects",
        ),
    ],
)
async def test_each_tool_call_is_its_own(asking: Asking, source: TokenSource, script: list[bytes]) -> None:
    """Whether the server numbers them, names them, or neither."""
    source.script = [*script, _sent({"delta": {}, "finish_reason": "tool_calls"})]

    calls = (await asking.result())["tool_calls"]

    assert [(call["id"], call["name"], json.loads(call["arguments"])) for call in calls] == [
        ("x", "weather", {"city": "Rome"}),
        ("y", "time", {}),
    ]


async def test_a_huge_chunk_and_half_a_character_are_text(asking: Asking, source: TokenSource) -> None:
    """A chunk that is larger than an event is several; what no UTF-8 can carry is a question mark."""
    source.script = [_sent(_text("x" * 600_000)), _sent(_text("\ud83d")), END]

    job = await asking.submit()
    record = await asking.end(job)

    assert record.state == "succeeded", record.end_data()
    assert await asking.said(job) == "x" * 600_000 + "?"


# --- failures ---------------------------------------------------------------------------------------------------------


def _error(message: str, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "x", "code": code}}


@pytest.mark.parametrize(
    ("status", "document", "code"),
    [
        (404, _error("The model `x` does not exist", "model_not_found"), "llm_unknown_model"),
        (404, _error('model "x" not found, try pulling it first'), "llm_unknown_model"),
        (400, _error("too long", "context_length_exceeded"), "llm_context_too_long"),
        (400, _error("This model's maximum context length is 4096 tokens."), "llm_context_too_long"),
        (401, _error("Incorrect API key provided: sk-scr***key"), "llm_unauthorized"),
        (400, _error("temperature must be at most 2"), "llm_refused"),
        (429, _error("You exceeded your current quota", "insufficient_quota"), "llm_rate_limited"),
    ],
)
async def test_a_refusal_has_a_code_and_is_not_repeated(
    asking: Asking, source: TokenSource, status: int, document: dict[str, Any], code: str
) -> None:
    """What would be refused again is told at once, and our key's traces are not."""
    source.refusals = [(status, document, {})]

    problem = await asking.problem()

    assert problem["code"] == code
    assert "sk-" not in problem["detail"]
    assert source.asked == 1


@pytest.mark.parametrize(
    ("status", "headers", "code"),
    [
        (429, {"Retry-After": "0"}, "llm_rate_limited"),
        (429, {"retry-after-ms": "20"}, "llm_rate_limited"),
        (503, {"Retry-After": "0"}, "llm_upstream_failed"),
    ],
)
async def test_what_may_pass_is_tried_again_when_the_upstream_says(
    asking: Asking, source: TokenSource, status: int, headers: dict[str, str], code: str
) -> None:
    """The next attempt comes after Retry-After, and answers."""
    source.refusals = [(status, _error("slow down"), headers)]

    job = await asking.submit()

    assert (await asking.end(job)).state == "succeeded"
    [retrying] = [event.data for event in await asking.events(job) if event.type == "retrying"]
    assert (retrying["problem"]["code"], retrying["delay_seconds"] < 0.5) == (code, True)
    assert source.asked == 2


@pytest.mark.parametrize("as_date", [False, True])
async def test_a_limit_that_lasts_too_long_is_told(asking: Asking, source: TokenSource, as_date: bool) -> None:
    """Nobody waits for an hour; the caller hears how long it would be."""
    later = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True) if as_date else "3600"
    source.refusals = [(429, _error("later"), {"Retry-After": later})]

    problem = await asking.problem()

    assert problem["code"] == "llm_rate_limited"
    assert 3590 < problem["retry_after_seconds"] <= 3600


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ([_sent(_text("The", ""))], "llm_broke_off"),
        ([_sent(_text("The")), b'data: {"choices": {}}\n\n'], "llm_garbage"),
        ([_sent(_text("The")), b'data: {"choices": null}\n\n'], "llm_garbage"),
        ([_sent(_text("The")), b"data: nothing\n\n"], "llm_garbage"),
        (
            [_sent(_text("The")), b'data: {"error": "too many tokens in the context window"}\n\n'],
            "llm_context_too_long",
        ),
    ],
)
async def test_a_stream_that_goes_wrong_has_its_code(
    asking: Asking, source: TokenSource, script: list[bytes], code: str
) -> None:
    """And what was said by then is kept."""
    source.script = script

    job = await asking.submit()
    record = await asking.end(job)

    assert record.end_data()["problem"]["code"] == code
    assert await asking.said(job) == "The"


async def test_a_cancel_ends_a_call_that_nobody_answers(asking: Asking, source: TokenSource) -> None:
    """A server that takes the request and says nothing holds nobody up."""
    source.silent = True
    job = await asking.submit()
    await wait_until(lambda: source.asked == 1, what="the request")

    await asking.store.cancel(job, "me", "enough")

    assert (await asking.end(job)).state == "cancelled"
    await wait_until(lambda: source.cancelled == 1, what="the upstream sees it")


@pytest.mark.parametrize(
    ("switch", "code"),
    [
        ("cut_after", "upstream_broke_off"),
        ("end_after", "llm_broke_off"),
        ("garbage_after", "llm_garbage"),
        ("error_after", "llm_upstream_failed"),
    ],
)
async def test_after_the_first_token_a_failure_keeps_what_was_said(
    asking: Asking, source: TokenSource, switch: str, code: str
) -> None:
    """It is not asked a second time, the job fails with its own code, and the text stays."""
    setattr(source, switch, 2)

    job = await asking.submit()
    record = await asking.end(job)

    end = record.end_data()
    assert (record.state, end["problem"]["code"], end["partial"]) == ("failed", code, True)
    assert await asking.said(job) == "The answer"
    assert source.asked == 1


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that gives up a silent upstream soon."""
    monkeypatch.setenv("OUTLAST_UPSTREAM_IDLE_SECONDS", "1")


@pytest.mark.usefixtures("impatient")
async def test_a_server_that_falls_silent_after_a_token_is_given_up(asking: Asking, source: TokenSource) -> None:
    """It closes nothing, so nobody else would say so; what it had said is kept, and it isn't asked again."""
    source.hold_after = 2

    job = await asking.submit()
    record = await asking.end(job)

    end = record.end_data()
    assert (record.state, end["problem"]["code"], end["partial"]) == ("failed", "upstream_silent", True)
    assert await asking.said(job) == "The answer"
    assert source.asked == 1
    await wait_until(lambda: source.cancelled == 1, what="the upstream sees it")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("switch", [{"silent": True}, {"hold_after": 0}], ids=["no head", "no token"])
async def test_a_server_that_is_silent_from_the_start_is_asked_again(
    asking: Asking, source: TokenSource, switch: dict[str, Any]
) -> None:
    """Nobody has read anything yet."""
    vars(source).update(switch)
    job = await asking.submit()
    await wait_until(lambda: source.cancelled == 1, what="the end of the first try")
    source.go.set()

    assert (await asking.end(job)).state == "succeeded"
    [problem] = [event.data["problem"] for event in await asking.events(job) if event.type == "retrying"]
    assert problem["code"] == "upstream_silent"


@pytest.mark.usefixtures("impatient")
async def test_a_server_that_stays_silent_is_asked_twice_and_no_more(asking: Asking, source: TokenSource) -> None:
    """Each time it is waited for as long as a model may think, which is half an hour by default."""
    source.silent = True

    record = await asking.end(await asking.submit())

    assert (record.state, record.attempt, record.end_data()["problem"]["code"]) == ("failed", 2, "upstream_silent")


@pytest.mark.usefixtures("impatient")
async def test_a_slow_model_that_speaks_now_and_then_is_heard_out(asking: Asking, source: TokenSource) -> None:
    """What is limited is each silence, not the whole."""
    source.pause_seconds = 0.3

    assert (await asking.result())["text"] == source.text


async def test_before_the_first_token_a_broken_stream_is_tried_again(asking: Asking, source: TokenSource) -> None:
    """Nobody has read anything yet, so a second answer is as good."""
    source.cut_after = 0
    job = await asking.submit()
    await wait_until(lambda: source.asked == 1, what="the first try")
    source.cut_after = None

    assert (await asking.end(job)).state == "succeeded"
    assert source.asked == 2


async def test_a_cancel_closes_the_upstreams_stream(asking: Asking, source: TokenSource) -> None:
    """The model server sees its caller go, and can stop."""
    source.hold_after = 2
    job = await asking.submit()

    async def has_spoken() -> bool:
        return await asking.said(job) == "The answer"

    await wait_until(has_spoken, what="the first tokens")
    await asking.store.cancel(job, "me", "enough")

    assert (await asking.end(job)).state == "cancelled"
    await wait_until(lambda: source.cancelled == 1, what="the upstream sees it")


@pytest.mark.parametrize(
    ("goes_wrong", "code", "said"),
    [
        ({"refusals": [(404, _error("no such model", "model_not_found"), {})]}, "llm_unknown_model", ""),
        ({"refusals": [(400, _error("too long", "context_length_exceeded"), {})]}, "llm_context_too_long", ""),
        ({"cut_after": 2}, "upstream_broke_off", "The answer"),
        ({"end_after": 2}, "llm_broke_off", "The answer"),
        ({"garbage_after": 2}, "llm_garbage", "The answer"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_step_that_asks_fails_its_job_by_its_code_and_its_name(
    asking: Asking, source: TokenSource, goes_wrong: dict[str, Any], code: str, said: str
) -> None:
    """And the job keeps what the step had said."""
    for switch, value in goes_wrong.items():
        setattr(source, switch, value)

    job = await submit(asking.store, ASKS, model=MODEL, messages=ASK)
    end = (await asking.end(job)).end_data()

    assert (end["problem"]["code"], end["problem"]["step"], end["partial"]) == (code, "ask", bool(said))
    assert await asking.said(job, "ask.text") == said
    assert source.asked == 1
