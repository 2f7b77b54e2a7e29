"""From what was measured of a chain to findings. Pure: the same measurements give the same findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from gateway.doctor.drip import Shape
from gateway.doctor.finding import Finding, in_cause_order
from gateway.doctor.hops import Hop, hop
from gateway.doctor.measured import Chain, Drip, Silence, Socket
from gateway.doctor.signatures import heartbeat_for

# How the parts of the matrix are told apart.
_SLOW: frozenset[Shape] = frozenset({Shape.HELD, Shape.BATCHED, Shape.BEHIND, Shape.FIRST_HELD, Shape.UNEVEN})
# The gateway's heartbeat by default, and how much an idle limit has to be above it to be no danger.
_HEARTBEAT_SECONDS = 15.0
_SAFE_LIMIT_SECONDS = 3 * _HEARTBEAT_SECONDS
# Below this a limit for bodies is a trap for ordinary files, above it an edge's usual one.
_ORDINARY_BYTES = 20_000_000


def diagnose(chain: Chain, *, path: str = "", host: str = "", scale: float = 1.0) -> list[Finding]:
    """The findings of a chain in cause order, notes last; none for a healthy one without anything worth noting.

    `scale` is that of the pace it was measured with.
    """
    found: list[Finding] = []
    if chain.probe == "refused":
        found.append(Finding("probe_token", ("401 to the token that was sent",)))
    elif chain.probe == "ready":
        found += [
            *_headers(chain),
            *_socket(chain.socket, scale),
            *_streams(chain.drips),
            *_statuses(chain),
            *_uploads(chain),
            *_silence(chain.silence, scale),
        ]
    values = _values_of(chain, path, host)
    filled = [Finding(finding.code, finding.evidence, values | dict(finding.values)) for finding in found]
    return in_cause_order(filled)


def origin_finding(chain: Chain, *, host: str = "") -> Finding | None:
    """What is wrong at the origin itself, if anything: then nothing in front of it is worth looking at."""
    if chain.probe == "unreachable":
        return Finding("origin_down", (chain.answered.detail or str(chain.answered.ended),), {"host": host})
    late = [drip for drip in chain.drips if drip.shape is not Shape.PACED]
    if late:
        return Finding("origin_late", tuple(_told(drip) for drip in late), {"host": host})
    return None


def _values_of(chain: Chain, path: str, host: str) -> dict[str, str]:
    names = [*chain.answered.hops, *chain.inner_hops]
    blamed: Hop = hop(names)
    values = {
        "hop": blamed.title,
        "buffering": blamed.buffering,
        "websocket": blamed.websocket,
        "body": blamed.body,
        "timeout": blamed.timeout.format(heartbeat=_heartbeat(chain.silence)),
        "heartbeat": _heartbeat(chain.silence),
    }
    if any(drip.format == "sse" and drip.shape is not Shape.PACED for drip in chain.drips):
        values["fallback"] = "SSE, which clients fall back to, does not come in time either: mend that first."
    return values | ({"path": path} if path else {}) | ({"host": host} if host else {})


def _heartbeat(silence: Silence | None) -> str:
    cuts = [silence.first_byte_cut_seconds, silence.gap_cut_seconds] if silence else []
    known = [cut for cut in cuts if cut is not None]
    return heartbeat_for(min(known)) if known else "15"


# --- the matrix -------------------------------------------------------------------------------------------------------


def _streams(drips: Sequence[Drip]) -> Iterable[Finding]:
    """One finding for all streams: several would be one cause seen several times."""
    bad = [drip for drip in drips if drip.shape is not Shape.PACED]
    evidence = tuple(_told(drip) for drip in bad[:4]) + ((f"{len(bad)} of {len(drips)} streams",) if bad else ())
    slow = [drip for drip in bad if drip.shape in _SLOW]
    cut = [drip for drip in bad if drip.shape is Shape.CUT]
    if slow:
        yield Finding(_slow_code(drips, slow), evidence, {"cells": _cells(slow), "seconds": _lag(slow)})
    elif cut:
        values = {"seconds": f"{min(drip.ended_seconds for drip in cut):.1f}", "size": str(min(d.size for d in cut))}
        yield Finding("stream_cut", evidence, values)
    elif any(drip.shape is Shape.ALTERED for drip in bad):
        yield Finding("stream_altered", evidence)
    elif bad:
        statuses = ", ".join(sorted({str(drip.status) for drip in bad}))
        yield Finding("stream_replaced", evidence, {"status": statuses, "cells": _cells(bad)})
    compressed = [drip for drip in drips if drip.shape is Shape.PACED and drip.content_encoding]
    if compressed:
        yield Finding("compressed_stream", tuple(f"{drip.cell}: {drip.content_encoding}" for drip in compressed[:4]))


_NEARLY_ALL = 0.8
_WHOLE_MATRIX = {
    Shape.HELD: "all_held",
    Shape.BEHIND: "one_behind",
    Shape.FIRST_HELD: "first_held",
    Shape.BATCHED: "batched",
    Shape.UNEVEN: "uneven",
}


def _slow_code(drips: Sequence[Drip], slow: Sequence[Drip]) -> str:
    """Which part of the matrix is slow tells what holds it."""
    cells = {drip.cell for drip in slow}

    def exactly(**wanted: tuple[str, ...]) -> bool:
        chosen = {drip.cell for drip in drips if all(getattr(drip, name) in values for name, values in wanted.items())}
        return cells == chosen and len(chosen) < len(drips)

    shapes = {drip.shape for drip in slow}
    if len(shapes) == 1 and (telling := shapes & {Shape.BEHIND, Shape.FIRST_HELD}):
        # The way in which they came tells more than which of them did: scanners look at some types only.
        return _WHOLE_MATRIX[telling.pop()]
    patterns = (
        ("get_held", exactly(method=("GET",))),
        ("post_held", exactly(method=("POST",))),
        ("only_sse", exactly(format=("ndjson", "json", "text")) or exactly(format=("json", "text"))),
        ("json_held", exactly(format=("json",))),
        ("http2_held", exactly(http=("2",))),
    )
    part = next((code for code, fits in patterns if fits), None)
    if part is None and len(cells) >= _NEARLY_ALL * len(drips):
        # What most streams have in common; one may have slipped through, or been hit by something else besides.
        [(usual, _)] = Counter(drip.shape for drip in slow).most_common(1)
        return _WHOLE_MATRIX[usual]
    if part is not None:
        return part
    if all(drip.http == "2" for drip in slow):
        return "http2_held"
    if all(drip.encoding == "gzip" for drip in slow) and any(drip.encoding == "identity" for drip in drips):
        return "compressed_held"
    return "uneven" if shapes == {Shape.UNEVEN} else "some_held"


def _cells(drips: Iterable[Drip]) -> str:
    return ", ".join(sorted({f"{drip.method} {drip.format}" for drip in drips}))


def _lag(drips: Iterable[Drip]) -> str:
    return f"{max(drip.largest_lag_seconds for drip in drips):.1f}"


def _told(drip: Drip) -> str:
    if drip.shape in {Shape.CUT, Shape.FAILED}:
        return f"{drip.cell}: {drip.shape}, status {drip.status}, after {drip.ended_seconds:.1f} s"
    return f"{drip.cell}: {drip.shape}, sent over {drip.sent_seconds:.1f} s, came over {drip.came_seconds:.1f} s"


# --- the rest ---------------------------------------------------------------------------------------------------------


def _headers(chain: Chain) -> Iterable[Finding]:
    if chain.missing_headers:
        lost = ", ".join(chain.missing_headers)
        yield Finding("headers_stripped", (f"sent and not arrived: {lost}",), {"headers": lost})
    if chain.cached:
        yield Finding("answers_cached", ("two requests, one answer",))
    if chain.headers_held:
        yield Finding("headers_held", ("headers came with the first byte, 3 s late",))


def _socket(socket: Socket | None, scale: float) -> Iterable[Finding]:
    if socket is None or socket.outcome == "works":
        return
    code = {
        "stripped": "upgrade_stripped",
        "refused": "upgrade_refused",
        "challenged": "challenge",
        "unreachable": "upgrade_refused",
        "mute": "socket_mute",
        "closed": "socket_closed",
        "altered": "socket_altered",
        "idle_cut": "socket_idle",
    }[socket.outcome]
    if code == "socket_idle" and socket.seconds >= _SAFE_LIMIT_SECONDS * scale:
        code = "socket_idle_limit"
    told = f"handshake: {socket.status or 'no answer'}" + (f", {socket.seconds:.1f} s" if socket.seconds else "")
    values = {
        "seconds": f"{socket.seconds:.0f}",
        "status": str(socket.status or "no answer"),
        "heartbeat": heartbeat_for(socket.seconds or 45),
    }
    yield Finding(code, (told,), values)


def _statuses(chain: Chain) -> Iterable[Finding]:
    replaced = sorted(code for code, body in chain.bodies.items() if body == "replaced")
    if {"500", "503"} & set(replaced):
        yield Finding("errors_rewritten", (f"replaced: {', '.join(replaced)}",), {"statuses": ", ".join(replaced)})
    elif replaced:
        yield Finding("gateway_errors_replaced", values={"statuses": " and ".join(replaced)})
    if chain.interim == "dropped":
        yield Finding("interim_dropped", ("a 103 was sent and did not come",))


def _uploads(chain: Chain) -> Iterable[Finding]:
    if chain.upload:
        yield Finding("upload_failed", (chain.upload,), {"detail": chain.upload})
    if chain.visits is not None and chain.visits > 1:
        yield Finding("requests_repeated", (f"one POST, {chain.visits} arrivals",), {"visits": str(chain.visits)})
    if (size := chain.refused_bytes) is not None:
        code = "uploads_refused" if size < _ORDINARY_BYTES else "body_limit"
        yield Finding(code, (f"413 to an announced body of {size} bytes",), {"limit": f"{size / 1e6:.0f} MB"})


def _silence(silence: Silence | None, scale: float) -> Iterable[Finding]:
    if silence is None:
        return
    cuts = [cut for cut in (silence.first_byte_cut_seconds, silence.gap_cut_seconds) if cut is not None]
    if silence.paced_cut_seconds is not None:
        paced = silence.paced_cut_seconds
        yield Finding("cut_at_age", (f"cut after {paced:.1f} s with a heartbeat",), {"seconds": f"{paced:.0f}"})
    elif cuts:
        shortest = min(cuts)
        status = f", status {silence.first_byte_status}" if silence.first_byte_status else ""
        evidence = (f"silence cut after {shortest:.1f} s{status}", "a heartbeat at half of it was not cut")
        code = "silence_cut" if shortest < _SAFE_LIMIT_SECONDS * scale else "silence_limit"
        yield Finding(code, evidence, {"seconds": f"{shortest:.0f}", "heartbeat": heartbeat_for(shortest)})
