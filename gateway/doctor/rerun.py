"""The smallest action that shows whether a fault is still there: one measurement for each kind of verdict."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

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
    measured = await again.measure(probes)
    fields = {again.field: measured} if again.field else measured
    chain = before.model_copy(update={"drips": (), **_NOTHING, **fields})
    codes = {finding.code for finding in diagnose(chain, scale=pace.scale)}
    same = {one for one in codes if VERDICTS[one].cause is VERDICTS[code].cause and not VERDICTS[one].note}
    return Still(bool(same), f"{', '.join(sorted(same))} again" if same else "it does not show any more")


def seconds_to_repeat(code: str) -> float | None:
    """The longest that a repeat takes; None for a verdict that no measurement stands behind."""
    if code in _STREAMS:
        return 20.0
    return _AGAIN[code].seconds if code in _AGAIN else None


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


class _Again(NamedTuple):
    """What to measure again, and which field of a chain that is; empty where it names its fields itself."""

    measure: Callable[[Probes], Awaitable[Any]]
    field: str = ""
    seconds: float = 20.0


_SOCKET: Final = _Again(Probes.socket, "socket")
_HEADERS: Final = _Again(Probes.headers)
_UPLOAD: Final = _Again(Probes.upload)
_SILENCE: Final = _Again(Probes.silence, "silence", 420.0)
_AGAIN: Final = {
    "upgrade_stripped": _SOCKET,
    "upgrade_refused": _SOCKET,
    "challenge": _SOCKET,
    "socket_mute": _SOCKET,
    "socket_closed": _SOCKET,
    "socket_altered": _SOCKET,
    "socket_idle": _Again(lambda probes: probes.socket(110), "socket", 130.0),
    "errors_rewritten": _Again(Probes.bodies, "bodies"),
    "headers_stripped": _HEADERS,
    "answers_cached": _HEADERS,
    "requests_repeated": _UPLOAD,
    "upload_failed": _UPLOAD,
    "uploads_refused": _Again(Probes.refused_bytes, "refused_bytes"),
    "silence_cut": _SILENCE,
    "cut_at_age": _SILENCE,
}
