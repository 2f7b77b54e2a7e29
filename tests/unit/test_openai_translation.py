"""The door's plain functions: how a delta is taken apart, and how a request becomes a chat."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import from_json

from gateway.errors import InvalidInput
from gateway.event_text import encode_event_tail
from gateway.handlers.openai.response_request import chat_request
from gateway.handlers.openai.translation import delta_of


@pytest.mark.parametrize("text", ["", "word", 'a "quote" and a \\', "line\nbreak", "é 🦊 \u2028", '","text":"x"}}'])
@pytest.mark.parametrize("channel", ["text", "tool_call.0", 'odd","text":"'])
def test_a_delta_is_taken_apart_without_reading_its_json(channel: str, text: str) -> None:
    """Whatever stands in it: what is cut out is the same JSON string."""
    head = b'{"id":3,"time":"2026-01-01T00:00:00.000Z","job":"j","attempt":1,'

    got_channel, got_text = delta_of(head + encode_event_tail("delta", {"channel": channel, "text": text}))

    assert (from_json(b'"%b"' % got_channel), from_json(got_text)) == (channel, text)


@given(st.text(), st.text())
def test_any_delta_is_taken_apart_so(channel: str, text: str) -> None:
    """No channel and no text, however much it looks like what stands between them, moves the cut."""
    got_channel, got_text = delta_of(b'{"id":3,' + encode_event_tail("delta", {"channel": channel, "text": text}))

    assert (from_json(b'"%b"' % got_channel), from_json(got_text)) == (channel, text)


def test_a_delta_of_another_writer_is_read() -> None:
    """Its fields may stand in another order."""
    text = b'{"id":3,"job":"j","type":"delta","data":{"text":"hi","channel":"text"}}'

    assert delta_of(text) == (b"text", b'"hi"')


def asked(**body: Any) -> dict[str, Any]:
    """A request's chat."""
    return chat_request({"model": "m", "input": "What?"} | body)


def test_a_text_is_a_users_message() -> None:
    """And what every model server knows goes to it as it stands, what is null doesn't."""
    chat = asked(temperature=1, top_p=None, include=[], truncation="disabled")

    assert chat == {"model": "m", "messages": [{"role": "user", "content": "What?"}], "temperature": 1}


def test_parts_keep_their_order() -> None:
    """Images, files and texts of one message."""
    image = {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "low"}
    file = {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="}
    text = {"type": "input_text", "text": "See."}

    [message] = asked(input=[{"role": "user", "content": [text, image, file]}])["messages"]

    assert message["content"] == [
        {"type": "text", "text": "See."},
        {"type": "image_url", "image_url": {"url": image["image_url"], "detail": "low"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": file["file_data"]}},
    ]


def test_an_answer_can_be_sent_back_as_it_came() -> None:
    """Reasoning is left out; the message and its calls are one message again."""
    output: list[dict[str, Any]] = [
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Look."}]},
        {"type": "function_call", "call_id": "c1", "name": "a", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "b", "arguments": "{}"},
    ]

    messages = asked(input=output)["messages"]

    assert len(messages) == 1
    assert messages[0]["content"] == "Look."
    assert [call["id"] for call in messages[0]["tool_calls"]] == ["c1", "c2"]


def test_a_schema_and_a_choice_of_tool_are_a_chats() -> None:
    """Both APIs say the same in other words."""
    chat = asked(
        text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}},
        tools=[{"type": "function", "name": "f", "parameters": None}],
        tool_choice={"type": "function", "name": "f"},
    )

    schema = {"name": "n", "schema": {"type": "object"}, "strict": True}
    assert chat["response_format"] == {"type": "json_schema", "json_schema": schema}
    assert chat["tool_choice"] == {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"conversation": "c"}, "conversation"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["reasoning.encrypted_content"]}, "include"),
        ({"input": []}, "input"),
        ({"input": [7]}, "input.0"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input.0.role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, "input.0.content.0.type"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input.0.arguments"),
        ({"instructions": 7}, "instructions"),
        ({"tool_choice": {"type": "web_search"}, "tools": [{"type": "function", "name": "f"}]}, "tool_choice"),
    ],
)
def test_what_a_chat_cannot_say_is_refused_by_name(body: dict[str, Any], field: str) -> None:
    """It would be another question otherwise."""
    with pytest.raises(InvalidInput) as refused:
        asked(**body)

    assert [error["field"] for error in refused.value.errors] == [field]
