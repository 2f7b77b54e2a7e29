"""The smallest action that shows whether a fault is still there: one measurement for each kind of verdict."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from gateway.doctor.diagnosis import diagnose
from gateway.doctor.drip import Shape
from gateway.doctor.measured import Chain
from gateway.doctor.probes import Pace, Probes
from gateway.doctor.verdicts import VERDICTS, Cause


class Still(NamedTuple):
    """What the repeat found."""

    wrong: bool
    text: str


async def still_wrong(code: str, before: Chain, probes: Probes, pace: Pace) -> Still | None:
    """Repeat what led to the verdict `code`; None for one that no measurement stands behind."""
    first, state = await probes.first()
    if state != "ready":
        return None if before.probe != "ready" else Still(True, f"the probes can't be asked ({state}, {first.status})")
    if code in _STREAMS:
        bad = [drip for drip in before.drips if drip.shape is not Shape.PACED]
        if not bad:
            return None
        drips = await probes.again(bad)
        late = [drip for drip in drips if drip.shape is not Shape.PACED]
        return Still(bool(late), f"{len(drips) - len(late)} of {len(drips)} streams that failed are in time now")
    again = _AGAIN.get(code)
    if again is None:
        return None
    chain = before.model_copy(update={"drips": (), **_NOTHING, **await again(probes)})
    codes = {finding.code for finding in diagnose(chain, scale=pace.scale)}
    same = {one for one in codes if VERDICTS[one].cause is VERDICTS[code].cause and not VERDICTS[one].note}
    return Still(bool(same), f"{', '.join(sorted(same))} again" if same else "it does not show any more")


def seconds_to_repeat(code: str) -> float | None:
    """The longest that a repeat takes; None for a verdict that no measurement stands behind."""
    if code in _STREAMS:
        return 20.0
    if code not in _AGAIN:
        return None
    again = _AGAIN[code]
    return 420.0 if again is _silence else 130.0 if again is _idle_socket else 20.0


_STREAMS: Final = frozenset(
    code
    for code, verdict in VERDICTS.items()
    if (verdict.cause in {Cause.BUFFERING, Cause.COMPRESSION} and not verdict.note)
    or code in {"stream_cut", "stream_altered", "stream_replaced"}
)
# Only what is repeated may speak.
_NOTHING: Final[dict[str, object]] = {
    "headers_held": None,
    "socket": None,
    "bodies": {},
    "interim": None,
    "missing_headers": (),
    "cached": None,
    "visits": None,
    "upload": "",
    "refused_bytes": None,
    "silence": None,
}


async def _socket(probes: Probes) -> dict[str, object]:
    return {"socket": await probes.socket()}


async def _idle_socket(probes: Probes) -> dict[str, object]:
    return {"socket": await probes.socket(110)}


async def _bodies(probes: Probes) -> dict[str, object]:
    return {"bodies": await probes.bodies()}


async def _headers(probes: Probes) -> dict[str, object]:
    seen = await probes.headers()
    return {name: seen[name] for name in ("missing_headers", "cached") if name in seen}


async def _upload(probes: Probes) -> dict[str, object]:
    return await probes.upload()


async def _refused(probes: Probes) -> dict[str, object]:
    return {"refused_bytes": await probes.refused_bytes()}


async def _silence(probes: Probes) -> dict[str, object]:
    return {"silence": await probes.silence()}


_AGAIN: Final[dict[str, Callable[[Probes], Awaitable[dict[str, object]]]]] = {
    "upgrade_stripped": _socket,
    "upgrade_refused": _socket,
    "challenge": _socket,
    "socket_mute": _socket,
    "socket_closed": _socket,
    "socket_altered": _socket,
    "socket_idle": _idle_socket,
    "errors_rewritten": _bodies,
    "headers_stripped": _headers,
    "answers_cached": _headers,
    "requests_repeated": _upload,
    "upload_failed": _upload,
    "uploads_refused": _refused,
    "silence_cut": _silence,
    "cut_at_age": _silence,
}
