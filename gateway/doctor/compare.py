"""Two sets of measurements side by side, row by row in the order in which causes hide one another. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from pydantic import Field

from gateway.doctor.drip import Shape
from gateway.doctor.exchange import Ended
from gateway.doctor.measured import Chain, Value
from gateway.doctor.verdicts import Cause


class Difference(Value):
    """A row in which two chains differ."""

    what: str = Field(description="What differs.")
    cause: str = Field(description="To which kind of cause it belongs.")
    before: str = Field(description="In the working environment, or in the baseline.")
    after: str = Field(description="Here and now.")
    worse: bool = Field(description="Whether here and now is worse, as far as one can be called better.")

    @property
    def order(self) -> Cause:
        """The cause as a number of its order."""
        return Cause[self.cause.upper()]


class _Row(NamedTuple):
    """One thing to compare: how it reads, and how good it is (more is better; None: neither is)."""

    cause: Cause
    what: str
    reads: Callable[[Chain], str]
    good: Callable[[Chain], float] | None = None


def _hops(chain: Chain) -> str:
    hops = dict.fromkeys([*chain.answered.hops, *chain.inner_hops])
    return " > ".join(hops) or "none that shows"


def _missing(chain: Chain) -> str:
    return ", ".join(chain.missing_headers) or "all"


def _held(chain: Chain) -> str:
    slow = sorted({f"{drip.method} {drip.format}: {drip.shape}" for drip in chain.drips if drip.shape != Shape.PACED})
    shapes = {drip.shape for drip in chain.drips}
    if len(shapes) == 1:
        return f"all {shapes.pop()}"
    return "; ".join(slow) or "not measured"


def _compressed(chain: Chain) -> str:
    return ", ".join(sorted({drip.content_encoding for drip in chain.drips if drip.content_encoding})) or "none"


def _bodies(chain: Chain) -> str:
    return ", ".join(sorted(code for code, body in chain.bodies.items() if body == "replaced")) or "none"


def _seconds(name: str) -> Callable[[Chain], str]:
    def reads(chain: Chain) -> str:
        if chain.silence is None:
            return "not measured"
        value = getattr(chain.silence, name)
        return "no cut" if value is None else f"{value:.0f} s"

    return reads


def _limit(name: str) -> Callable[[Chain], float]:
    def good(chain: Chain) -> float:
        value = getattr(chain.silence, name) if chain.silence else None
        # A second more or less is the clock's, not the chain's.
        return 1e9 if value is None else round(value)

    return good


_ROWS: Final = (
    _Row(
        Cause.NAME,
        "the name",
        lambda chain: "does not resolve" if chain.answered.ended is Ended.NO_NAME else "resolves",
        lambda chain: chain.answered.ended is not Ended.NO_NAME,
    ),
    _Row(Cause.CONNECTION, "the hops", _hops),
    _Row(
        Cause.CONNECTION,
        "the connection",
        lambda chain: "answers" if chain.answered.status is not None else str(chain.answered.ended),
        lambda chain: chain.answered.status is not None,
    ),
    _Row(Cause.CONNECTION, "TLS", lambda chain: chain.answered.tls or "none"),
    _Row(Cause.GATE, "the first answer", lambda chain: str(chain.answered.status)),
    _Row(Cause.GATE, "request headers that arrive", _missing, lambda chain: -len(chain.missing_headers)),
    _Row(
        Cause.GATE,
        "caching",
        lambda chain: {True: "cached", False: "not cached", None: "not measured"}[chain.cached],
        lambda chain: not chain.cached,
    ),
    _Row(
        Cause.UPGRADE,
        "WebSocket",
        lambda chain: chain.socket.outcome if chain.socket else "not measured",
        lambda chain: chain.socket is None or chain.socket.outcome == "works",
    ),
    _Row(
        Cause.BUFFERING,
        "streams",
        _held,
        lambda chain: -sum(drip.shape is not Shape.PACED for drip in chain.drips),
    ),
    _Row(
        Cause.BUFFERING,
        "headers before the first byte",
        lambda chain: {True: "held", False: "at once", None: "not measured"}[chain.headers_held],
    ),
    _Row(Cause.COMPRESSION, "compression of streams", _compressed),
    _Row(
        Cause.IDLE,
        "silence before the first byte",
        _seconds("first_byte_cut_seconds"),
        _limit("first_byte_cut_seconds"),
    ),
    _Row(Cause.IDLE, "silence within a stream", _seconds("gap_cut_seconds"), _limit("gap_cut_seconds")),
    _Row(Cause.TOTAL, "a stream with a heartbeat", _seconds("paced_cut_seconds"), _limit("paced_cut_seconds")),
    _Row(
        Cause.SIZE,
        "the body that is refused",
        lambda chain: f"{chain.refused_bytes / 1e6:.0f} MB" if chain.refused_bytes else "none up to 100 MB",
        lambda chain: chain.refused_bytes or 1e12,
    ),
    _Row(Cause.STATUS, "error bodies that are replaced", _bodies, lambda chain: -_bodies(chain).count("5")),
    _Row(Cause.REPEAT, "arrivals of one POST", lambda chain: str(chain.visits or "not measured")),
)


def compare(before: Chain, after: Chain) -> list[Difference]:
    """The rows in which two chains differ, in cause order. What one of them did not measure is no difference."""
    found = []
    for row in _ROWS:
        texts = row.reads(before), row.reads(after)
        if texts[0] == texts[1] or "not measured" in texts:
            continue
        if row.good is not None and row.cause is Cause.IDLE and abs(row.good(before) - row.good(after)) <= 1:
            continue
        worse = row.good is not None and row.good(after) < row.good(before)
        cause = row.cause.name.lower()
        found.append(Difference(what=row.what, cause=cause, before=texts[0], after=texts[1], worse=worse))
    return found


def explaining(differences: Iterable[Difference], cause: Cause) -> Difference | None:
    """The first difference that can be behind a fault of this cause: one that stands before it, or beside it."""
    return next((difference for difference in differences if difference.order <= cause), None)
