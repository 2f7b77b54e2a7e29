"""Kinds of work: what can be submitted, who is there to do it, and whether it may begin."""

from __future__ import annotations

from collections import Counter
from typing import Final

from aiohttp import web

from gateway.documents import KindDocument, KindList, KindStatus
from gateway.errors import Forbidden
from gateway.handlers.context import SETTINGS, STORE, known_kind, principal
from gateway.handlers.documents import answer_with
from gateway.handlers.routes import Answer, Route


async def list_kinds(request: web.Request) -> web.Response:
    """`GET /v1/kinds`."""
    kinds = await request.app[STORE].kinds()
    answers = await _answers(request, list(kinds.values()))
    return answer_with(KindList(kinds=sorted(answers, key=lambda answer: answer.kind)))


async def read_kind(request: web.Request) -> web.Response:
    """`GET /v1/kinds/{kind}`."""
    kind = await known_kind(request.app[STORE], request.match_info["kind"])
    return answer_with((await _answers(request, [kind]))[0])


async def pause_kind(request: web.Request) -> web.Response:
    """`POST /v1/kinds/{kind}/pause`."""
    return await _pause(request, True)


async def resume_kind(request: web.Request) -> web.Response:
    """`POST /v1/kinds/{kind}/resume`."""
    return await _pause(request, False)


async def _pause(request: web.Request, paused: bool) -> web.Response:
    settings, owner = request.app[SETTINGS], principal(request).owner
    # It holds up everybody's jobs, so an owner's key alone is not enough.
    if settings.api_keys and owner not in settings.operators:
        raise Forbidden(
            f"Only an operator may pause or resume a kind; if {owner} should, add the name to OUTLAST_OPERATORS.",
            code="operators_only",
        )
    kind = await known_kind(request.app[STORE], request.match_info["kind"])
    await request.app[STORE].pause(kind.kind, paused)
    return answer_with((await _answers(request, [kind]))[0])


async def _answers(request: web.Request, kinds: list[KindDocument]) -> list[KindStatus]:
    store = request.app[STORE]
    names = [kind.kind for kind in kinds]
    workers = Counter(kind for worker in await store.workers() for kind in worker["kinds"])
    paused, depths = await store.paused(names), await store.depths(names)
    return [
        KindStatus(
            **kind.model_dump(),
            workers=workers[kind.kind],
            paused=kind.kind in paused,
            waiting=depths[kind.kind][0],
            running=depths[kind.kind][1],
        )
        for kind in kinds
    ]


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
        responses={200: Answer("The kind.", KindStatus)},
    ),
    Route(
        "POST",
        "/v1/kinds/{kind}/pause",
        pause_kind,
        "Let no worker begin jobs of a kind",
        "Jobs are taken all the same and wait; attempts that run are left alone. It stays so across restarts, until"
        " somebody resumes it. Where API keys are set, only those named in `OUTLAST_OPERATORS` may.",
        responses={200: Answer("The kind, paused.", KindStatus)},
    ),
    Route(
        "POST",
        "/v1/kinds/{kind}/resume",
        resume_kind,
        "Let workers begin jobs of a kind again",
        responses={200: Answer("The kind, at work.", KindStatus)},
    ),
]
