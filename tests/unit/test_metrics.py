"""Metrics: counting, the text format, and closed sets of labels."""

from __future__ import annotations

import pytest

from gateway.metrics import MAX_SERIES, TABLE, Metric, NoMetrics, Registry

SOME = (
    Metric("done", "counter", "Things done.", ("kind",)),
    Metric("size", "gauge", "How large."),
    Metric("took", "histogram", "How long.", (), (0.1, 1.0)),
)


def test_metrics_are_written_as_prometheus_reads_them() -> None:
    """Help and type for each, cumulative buckets, escaped labels, `_total` on counters."""
    registry = Registry(SOME)
    registry.count("done", kind='a"b\\c\n')
    registry.count("done", 2, kind="x")
    registry.set("size", 1.5)
    for value in (0.05, 0.1, 0.5, 7):
        registry.observe("took", value)

    assert registry.expose().splitlines() == [
        "# HELP outlast_done_total Things done.",
        "# TYPE outlast_done_total counter",
        'outlast_done_total{kind="a\\"b\\\\c\\n"} 1',
        'outlast_done_total{kind="x"} 2',
        "# HELP outlast_size How large.",
        "# TYPE outlast_size gauge",
        "outlast_size 1.5",
        "# HELP outlast_took How long.",
        "# TYPE outlast_took histogram",
        'outlast_took_bucket{le="0.1"} 2',
        'outlast_took_bucket{le="1"} 3',
        'outlast_took_bucket{le="+Inf"} 4',
        "outlast_took_sum 7.65",
        "outlast_took_count 4",
    ]


def test_an_unknown_metric_or_label_is_a_defect() -> None:
    """What is not in the table is not counted silently under another name."""
    registry = Registry(SOME)

    with pytest.raises(KeyError):
        registry.count("nothing")
    with pytest.raises(KeyError):
        registry.count("done")
    with pytest.raises(KeyError):
        registry.count("done", colour="red")
    with pytest.raises(KeyError):
        registry.set("size", 1, kind="x")


def test_a_label_that_is_not_closed_fills_no_memory() -> None:
    """Beyond a bound all further values are one."""
    registry = Registry(SOME)

    for number in range(MAX_SERIES + 50):
        registry.count("done", kind=str(number))

    text = registry.expose()
    assert text.count("outlast_done_total{") == MAX_SERIES + 1
    assert 'outlast_done_total{kind="other"} 50' in text


def test_a_gauge_can_be_forgotten() -> None:
    """A kind that is gone must not keep its last value."""
    registry = Registry(SOME)
    registry.set("size", 1)
    registry.clear("size")
    assert "\noutlast_size " not in registry.expose()


def test_no_metrics_count_nothing() -> None:
    """And take whatever they are given."""
    metrics = NoMetrics()

    metrics.count("anything", kind="x")
    metrics.set("anything", 1)
    metrics.observe("anything", 1)


def test_every_name_of_the_table_is_one() -> None:
    """Unique, in words of lower case; histograms have rising buckets."""
    assert len({metric.name for metric in TABLE}) == len(TABLE)
    for metric in TABLE:
        assert metric.exposed.replace("_", "a").isalpha()
        assert metric.help.endswith(".")
        assert (metric.type == "histogram") == bool(metric.buckets)
        assert list(metric.buckets) == sorted(metric.buckets)
