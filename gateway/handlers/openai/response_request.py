"""A request to OpenAI's Responses API as the chat that a model server is asked. Plain functions.

What can't be said in a chat is refused and never ignored: a model would answer another question than was asked.
"""

from __future__ import annotations

from typing import Any, Final

from gateway.handlers.validation import wrong_field

# What a response says again of its request.
KEPT: Final = (
    *("instructions", "metadata", "tools", "tool_choice", "temperature", "top_p", "parallel_tool_calls", "text"),
    *("reasoning", "max_output_tokens", "truncation", "user", "background"),
)
# Either we can't do it, or only OpenAI's own servers can. Their neutral values are what most clients send.
_REFUSED: Final[dict[str, tuple[Any, ...]]] = {
    "previous_response_id": (None,),
    "conversation": (None,),
    "prompt": (None,),
    "include": (None, []),
    "truncation": (None, "disabled"),
    "max_tool_calls": (None,),
}
_RENAMED: Final = {"max_output_tokens": "max_completion_tokens"}
_OURS: Final = frozenset(
    {*_REFUSED, "input", "instructions", "tools", "tool_choice", "text", "reasoning"} | {"metadata"}
)
_ROLES: Final = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
_TEXTS: Final = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}


def chat_request(body: dict[str, Any]) -> dict[str, Any]:
    """What the model server is asked. Raises `InvalidInput`, naming the field."""
    for name, allowed in _REFUSED.items():
        if body.get(name) not in allowed:
            raise wrong_field(name, f"{name} can't be asked of a model server; send the whole conversation as `input`")
    passed = {name: value for name, value in body.items() if name not in _OURS and value is not None}
    asked = {_RENAMED.get(name, name): value for name, value in passed.items()}
    messages = _messages(body.get("input"))
    if body.get("instructions") is not None:
        messages.insert(0, {"role": "system", "content": _text(body["instructions"], "instructions")})
    asked["messages"] = messages
    if body.get("tools"):
        asked["tools"] = [_tool(tool, f"tools.{index}") for index, tool in enumerate(_list(body["tools"], "tools"))]
    choice = body.get("tool_choice")
    if choice is not None and asked.get("tools"):
        asked["tool_choice"] = _tool_choice(choice)
    if (reasoning := _object(body.get("reasoning"), "reasoning")).get("effort") is not None:
        asked["reasoning_effort"] = reasoning["effort"]
    text = _object(body.get("text"), "text")
    if (format_ := _object(text.get("format"), "text.format")).get("type", "text") != "text":
        asked["response_format"] = _response_format(format_)
    if text.get("verbosity") is not None:
        asked["verbosity"] = text["verbosity"]
    return asked


def _messages(given: Any) -> list[dict[str, Any]]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[dict[str, Any]] = []
    for index, item in enumerate(_list(given, "input")):
        _add(messages, _object(item, f"input.{index}"), f"input.{index}")
    if not messages:
        raise wrong_field("input", "a text or a list of items is needed")
    return messages


def _add(messages: list[dict[str, Any]], item: dict[str, Any], field: str) -> None:
    match item.get("type", "message"):
        case "message":
            role = _ROLES.get(str(item.get("role")))
            if role is None:
                raise wrong_field(f"{field}.role", f"one of {', '.join(_ROLES)}")
            messages.append({"role": role, "content": _content(item.get("content"), f"{field}.content")})
        case "function_call":
            function = {
                "name": _text(item.get("name"), f"{field}.name"),
                "arguments": _text(item.get("arguments"), f"{field}.arguments"),
            }
            call = {"id": _text(item.get("call_id"), f"{field}.call_id"), "type": "function", "function": function}
            # Calls that were made together, and the text before them, are one message.
            if messages and messages[-1]["role"] == "assistant":
                messages[-1].setdefault("tool_calls", []).append(call)
            else:
                messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        case "function_call_output":
            call_id = _text(item.get("call_id"), f"{field}.call_id")
            content = _content(item.get("output"), f"{field}.output")
            messages.append({"role": "tool", "tool_call_id": call_id, "content": content})
        case "reasoning":
            # What a model thought for an earlier answer: chats don't carry it, and servers drop it themselves.
            pass
        case other:
            raise wrong_field(f"{field}.type", f"items of the type {str(other)[:40]!r} can't be sent to a model server")


def _content(given: Any, field: str) -> str | list[dict[str, Any]]:
    if isinstance(given, str):
        return given
    parts = [
        _part(_object(part, f"{field}.{index}"), f"{field}.{index}") for index, part in enumerate(_list(given, field))
    ]
    # As a plain text where it is one: not every server reads parts.
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _part(part: dict[str, Any], field: str) -> dict[str, Any]:
    kind = str(part.get("type"))
    if kind in _TEXTS:
        return {"type": "text", "text": _text(part.get(_TEXTS[kind]), f"{field}.{_TEXTS[kind]}")}
    if kind == "input_image" and part.get("image_url"):
        image = {"url": _text(part["image_url"], f"{field}.image_url")}
        return {"type": "image_url", "image_url": image | ({"detail": part["detail"]} if part.get("detail") else {})}
    if kind == "input_file" and part.get("file_data"):
        return {"type": "file", "file": {name: part[name] for name in ("filename", "file_data") if name in part}}
    raise wrong_field(f"{field}.type", f"a part of the type {kind[:40]!r} can't be sent as it is to a model server")


def _tool(tool: Any, field: str) -> dict[str, Any]:
    tool = _object(tool, field)
    if tool.get("type") != "function":
        raise wrong_field(f"{field}.type", "only functions: a model server runs no tools of its own")
    names = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {name: tool[name] for name in names if tool.get(name) is not None}}


def _tool_choice(choice: Any) -> Any:
    if isinstance(choice, str):
        return choice
    if _object(choice, "tool_choice").get("type") != "function":
        raise wrong_field("tool_choice", "`none`, `auto`, `required` or a function")
    return {"type": "function", "function": {"name": choice.get("name")}}


def _response_format(format_: dict[str, Any]) -> dict[str, Any]:
    if format_["type"] != "json_schema":
        return {"type": format_["type"]}
    names = ("name", "description", "schema", "strict")
    return {"type": "json_schema", "json_schema": {name: format_[name] for name in names if name in format_}}


def _list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise wrong_field(field, "needed, a list")
    return value


def _object(value: Any, field: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise wrong_field(field, "not an object")
    return value


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise wrong_field(field, "needed, a text")
    return value
