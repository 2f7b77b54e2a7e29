"""Metrics in the Prometheus text format: counters, gauges and histograms, all declared in one table.

Code that counts gets a `Metrics`; `NoMetrics` is the default, so that nobody asks "if metrics". Labels come from
closed sets, and a bound on the series of one metric holds should one of them turn out not to be closed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, Protocol

PREFIX: Final = "outlast_"
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
# More series than this of one metric are added up under the label value "other": a label that a client can choose
# would fill the memory of this process and of the server that scrapes it.
MAX_SERIES: Final = 1000

_SECONDS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """What a metric is called, what it means, and which labels it has."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def exposed(self) -> str:
        """The name on `/metrics`; a counter's ends in `_total`."""
        return PREFIX + self.name + ("_total" if self.type == "counter" else "")


TABLE: Final = (
    Metric("http_connections", "gauge", "TCP connections that are open."),
    Metric("listeners", "gauge", "Streams, sockets and waits that hear events.", ("transport",)),
    Metric("connections_opened", "counter", "Streams, sockets and waits that were opened.", ("transport",)),
    Metric("connections_closed", "counter", "The same, ended, and why.", ("transport", "reason")),
    Metric("connections_refused", "counter", "TCP connections that were over the limit."),
    Metric(
        "connections_timed_out", "counter", "Connections that the gateway gave up, by what it waited for.", ("what",)
    ),
    Metric("resumes", "counter", "Listeners that came back with a cursor, and what they got.", ("result",)),
    Metric("polls", "counter", "Pages of events that were read by polling."),
    Metric("slow_closed", "counter", "Listeners that were closed because they read too slowly."),
    Metric("requests", "counter", "Requests by route and status.", ("route", "method", "status")),
    Metric("request_seconds", "histogram", "Until the end of the answer, streams left out.", ("route",), _SECONDS),
    Metric("problems", "counter", "Problem documents that were sent.", ("code",)),
    Metric("auth_failures", "counter", "Requests without a good API key.", ("reason",)),
    Metric(
        "jobs_submitted", "counter", "Submits by kind; replayed ones had been accepted before.", ("kind", "outcome")
    ),
    Metric("uploaded_bytes", "counter", "Bytes of files that were stored."),
    Metric("queue_depth", "gauge", "Jobs that wait.", ("kind",)),
    Metric("queue_running", "gauge", "Jobs in hand.", ("kind",)),
    Metric("dead_jobs", "gauge", "Jobs that used up their attempts and wait to be done again.", ("kind",)),
    Metric("workers", "gauge", "Workers that showed themselves lately."),
    Metric("store_up", "gauge", "1 if Redis answered this scrape."),
    Metric(
        "loop_lag_seconds", "histogram", "How late the event loop is: a blocked loop is silence for all.", (), _SECONDS
    ),
)


class Metrics(Protocol):
    """What code that counts needs. Names and labels are those of `TABLE`."""

    def count(self, name: str, amount: float = 1, /, **labels: str) -> None:
        """Add to a counter."""

    def observe(self, name: str, value: float, /, **labels: str) -> None:
        """Put a value into a histogram."""

    def set(self, name: str, value: float, /, **labels: str) -> None:
        """Set a gauge."""


class NoMetrics:
    """Counts nothing."""

    def count(self, name: str, amount: float = 1, /, **labels: str) -> None:
        """Do nothing."""

    def observe(self, name: str, value: float, /, **labels: str) -> None:
        """Do nothing."""

    def set(self, name: str, value: float, /, **labels: str) -> None:
        """Do nothing."""


class _Histogram:
    """Counts by upper bound, not yet cumulative, and the sum of what was observed."""

    __slots__ = ("counts", "sum")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * (buckets + 1)
        self.sum = 0.0


class Registry:
    """Keeps the metrics of one process, and writes them as text.

    A name that is not in the table, or a label too many or too few, is a defect in the caller: `KeyError`.
    """

    def __init__(self, table: Iterable[Metric] = TABLE) -> None:
        self._table: Mapping[str, Metric] = {metric.name: metric for metric in table}
        self._values: dict[str, dict[tuple[str, ...], float]] = {name: {} for name in self._table}
        self._histograms: dict[str, dict[tuple[str, ...], _Histogram]] = {name: {} for name in self._table}

    def count(self, name: str, amount: float = 1, /, **labels: str) -> None:
        """Add to a counter."""
        metric, values = self._table[name], self._values[name]
        key = self._key(metric, labels, values)
        values[key] = values.get(key, 0) + amount

    def set(self, name: str, value: float, /, **labels: str) -> None:
        """Set a gauge."""
        metric, values = self._table[name], self._values[name]
        values[self._key(metric, labels, values)] = value

    def observe(self, name: str, value: float, /, **labels: str) -> None:
        """Put a value into a histogram."""
        metric, histograms = self._table[name], self._histograms[name]
        key = self._key(metric, labels, histograms)
        histogram = histograms.get(key)
        if histogram is None:
            histogram = histograms[key] = _Histogram(len(metric.buckets))
        index = next((i for i, bound in enumerate(metric.buckets) if value <= bound), len(metric.buckets))
        histogram.counts[index] += 1
        histogram.sum += value

    def clear(self, name: str) -> None:
        """Forget a gauge's series, before it is set anew: a kind that is gone must not keep its last depth."""
        self._values[name].clear()

    def expose(self) -> str:
        """All metrics as Prometheus text."""
        lines: list[str] = []
        for metric in self._table.values():
            lines += (f"# HELP {metric.exposed} {metric.help}", f"# TYPE {metric.exposed} {metric.type}")
            for key, value in sorted(self._values[metric.name].items()):
                lines.append(f"{metric.exposed}{_labels(metric.labels, key)} {_number(value)}")
            for key, histogram in sorted(self._histograms[metric.name].items()):
                lines += _histogram_lines(metric, key, histogram)
        return "\n".join(lines) + "\n"

    @staticmethod
    def _key(metric: Metric, labels: Mapping[str, str], series: Mapping[tuple[str, ...], object]) -> tuple[str, ...]:
        if len(labels) != len(metric.labels):
            raise KeyError(f"{metric.name} has the labels {metric.labels}, not {tuple(labels)}")
        key = tuple(labels[name] for name in metric.labels)
        if key not in series and len(series) >= MAX_SERIES:
            return ("other",) * len(key)
        return key


def _histogram_lines(metric: Metric, key: tuple[str, ...], histogram: _Histogram) -> list[str]:
    lines, total = [], 0
    for bound, count in zip((*metric.buckets, float("inf")), histogram.counts, strict=True):
        total += count
        labels = _labels((*metric.labels, "le"), (*key, _number(bound)))
        lines.append(f"{metric.exposed}_bucket{labels} {total}")
    labels = _labels(metric.labels, key)
    return [*lines, f"{metric.exposed}_sum{labels} {_number(histogram.sum)}", f"{metric.exposed}_count{labels} {total}"]


def _labels(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    if not names:
        return ""
    pairs = (f'{name}="{_escape(value)}"' for name, value in zip(names, values, strict=True))
    return "{" + ",".join(pairs) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return str(int(value)) if value == int(value) else repr(value)
