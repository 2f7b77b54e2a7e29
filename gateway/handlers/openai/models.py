"""`GET /openai/v1/models`: the models that can be asked. A worker knows; the gateway calls nobody."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from gateway.errors import OutlastError
from gateway.handlers.context import principal
from gateway.handlers.openai.asking import ERROR, LLM, held_result, llm_kind
from gateway.handlers.received import Received
from gateway.handlers.routes import Answer, Route
from gateway.store import JobRecord


async def models(request: web.Request) -> web.StreamResponse:
    """`GET /openai/v1/models`."""
    kind = await llm_kind(request.app, f"{LLM}.models")
    async with Received(request.app, kind, principal(request), key=None) as received:
        submitted = await received.submit()
    return await held_result(request, submitted, _list)


async def _list(record: JobRecord, result: dict[str, Any] | None, _: OutlastError | None) -> dict[str, Any]:
    names = result["models"] if result is not None else []
    return {
        "object": "list",
        "data": [
            {"id": name, "object": "model", "created": record.created_ms // 1000, "owned_by": "outlast"}
            for name in names
        ],
    }


routes: Final = (
    Route(
        "GET",
        "/openai/v1/models",
        models,
        "List models, as in OpenAI's API",
        responses={200: Answer("The models that can be asked.")} | ERROR,
        held=True,
    ),
)
