"""Kinds of work: what can be submitted, and who is there to do it."""

from __future__ import annotations

from collections import Counter
from typing import Final

from aiohttp import web
from pydantic import BaseModel, Field

from gateway.documents import KindDocument
from gateway.handlers.context import STORE, known_kind
from gateway.handlers.routes import Answer, Route


class KindAnswer(KindDocument):
    """A kind, and how many workers serve it now. A kind without one takes jobs all the same: they wait."""

    workers: int = Field(0, description="Workers that showed themselves in the last seconds and do this kind.")


class KindList(BaseModel):
    """All known kinds, by name."""

    kinds: list[KindAnswer]


async def list_kinds(request: web.Request) -> web.Response:
    """`GET /v1/kinds`."""
    store = request.app[STORE]
    kinds, workers = await store.kinds(), await _workers(request)
    answers = [KindAnswer(**kind.model_dump(), workers=workers[kind.kind]) for kind in kinds.values()]
    return _json(KindList(kinds=sorted(answers, key=lambda answer: answer.kind)))


async def read_kind(request: web.Request) -> web.Response:
    """`GET /v1/kinds/{kind}`."""
    kind = await known_kind(request.app[STORE], request.match_info["kind"])
    workers = await _workers(request)
    return _json(KindAnswer(**kind.model_dump(), workers=workers[kind.kind]))


async def _workers(request: web.Request) -> Counter[str]:
    return Counter(kind for worker in await request.app[STORE].workers() for kind in worker["kinds"])


def _json(model: BaseModel) -> web.Response:
    return web.Response(
        body=model.model_dump_json().encode(), content_type="application/json", headers={"Cache-Control": "no-store"}
    )


routes: Final = [
    Route(
        "GET",
        "/v1/kinds",
        list_kinds,
        "List the kinds of work",
        "Each with the JSON Schema of its input. A kind is known from its worker's first start on, also while no"
        " worker runs.",
        responses={200: Answer("The kinds.", KindList)},
    ),
    Route(
        "GET",
        "/v1/kinds/{kind}",
        read_kind,
        "Read one kind of work",
        responses={200: Answer("The kind.", KindAnswer)},
    ),
]
