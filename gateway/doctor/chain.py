"""One chain measured: everything at once, or only what tells whether an origin sends in time."""

from __future__ import annotations

import asyncio

from gateway.doctor.exchange import Exchange
from gateway.doctor.hops import hops_of_answer
from gateway.doctor.measured import Answered, Chain
from gateway.doctor.observation import observed
from gateway.doctor.probes import Pace, Probes, Target, rounded
from gateway.doctor.redact import redact_url
from gateway.doctor.signatures import ray_and_colo


def answered(result: Exchange) -> Answered:
    """An exchange as it is told, saved and compared."""
    seen = observed(result)
    ray, colo = ray_and_colo(seen)
    tls = result.tls
    return Answered(
        url=redact_url(result.url),
        method=result.method,
        ended=result.ended,
        detail=result.detail,
        status=result.status,
        hops=tuple(hops_of_answer(seen.headers)),
        ray=ray,
        colo=colo,
        addresses=result.addresses,
        tls=", ".join(part for part in (tls.version, tls.alpn, tls.issuer) if part) if tls else "",
        framing=result.framing,
        content_encoding=seen.get("content-encoding"),
        connected_seconds=rounded(result.connected_seconds),
        head_seconds=rounded(result.head_seconds),
        first_byte_seconds=rounded(result.first_byte_seconds),
        largest_gap_seconds=round(result.largest_gap_seconds, 3),
        ended_seconds=round(result.ended_seconds, 3),
    )


async def measure(target: Target, pace: Pace, *, deep: bool) -> tuple[Chain, Exchange]:
    """Measure a chain with everything; returns what was measured, and the first exchange for its signature."""
    probes = Probes(target, pace)
    first, state = await probes.first()
    if state != "ready":
        return Chain(probe=state, answered=answered(first)), first
    async with asyncio.TaskGroup() as group:
        drips = group.create_task(probes.matrix())
        held = group.create_task(probes.headers_held())
        socket = group.create_task(probes.socket(110 if deep else 2))
        bodies = group.create_task(probes.bodies())
        interim = group.create_task(probes.interim())
        headers = group.create_task(probes.headers())
        upload = group.create_task(probes.upload())
        refused = group.create_task(probes.refused_bytes())
        silence = group.create_task(probes.silence()) if deep else None
        slow = group.create_task(probes.slow_upload()) if deep else None
    if probes.crowded:
        return Chain(probe="busy", answered=answered(first)), first
    uploaded = upload.result()
    if slow is not None and not uploaded["upload"]:
        uploaded["upload"] = slow.result()
    chain = Chain(
        probe="ready",
        answered=answered(first),
        drips=drips.result(),
        headers_held=held.result(),
        socket=socket.result(),
        bodies=bodies.result(),
        interim=interim.result(),
        refused_bytes=refused.result(),
        silence=silence.result() if silence else None,
        **headers.result(),
        **uploaded,
    )
    return chain, first


async def measure_origin(target: Target, pace: Pace) -> tuple[Chain, Exchange]:
    """Measure only what tells whether an origin sends in time."""
    probes = Probes(target, pace)
    first, state = await probes.first()
    drips = await probes.few() if state == "ready" else ()
    if probes.crowded:
        return Chain(probe="busy", answered=answered(first)), first
    return Chain(probe=state, answered=answered(first), drips=drips), first
