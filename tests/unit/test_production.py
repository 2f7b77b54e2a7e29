"""docs/production.md and the files of deploy/ fit the code: settings, metrics, times, and what an image is made of."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.config import Settings
from gateway.metrics import PREFIX, TABLE

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PAGE = ROOT / "docs" / "production.md"
FILES = (DEPLOY / "compose.yaml", DEPLOY / "Dockerfile", DEPLOY / "nginx.conf", DEPLOY / "outlast.service", PAGE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_setting_and_metric_that_is_named_exists(path: Path) -> None:
    """A name that is gone would be set in vain."""
    known = {f"OUTLAST_{name.upper()}" for name in Settings.model_fields}
    metrics = {PREFIX + metric.name for metric in TABLE}

    assert set(re.findall(r"OUTLAST_[A-Z_]+[A-Z]", path.read_text())) <= known
    assert set(re.findall(r"`(outlast_[a-z_]+)`", path.read_text())) <= metrics


def test_everything_may_take_as_long_to_stop_as_it_says() -> None:
    """Who is killed before that hands no job back."""
    settings = Settings.model_fields
    drain, grace = (settings[name].default for name in ("drain_seconds", "stop_grace_seconds"))
    periods = re.findall(r"^    stop_grace_period: (\d+)s$", _text("compose.yaml"), re.MULTILINE)
    units = re.findall(r"^TimeoutStopSec=(\d+)$", _text("outlast.service"), re.MULTILINE)

    assert (len(periods), len(units)) == (2, 1)
    assert min(map(int, periods + units)) > drain + grace


def test_the_image_is_made_of_what_is_here() -> None:
    """What is copied exists, and nothing that it leaves out is copied."""
    copied = re.findall(r"^COPY (.+) \S+$", _text("Dockerfile"), re.MULTILINE)
    names = [name for line in copied for name in line.split()]

    assert {"gateway", "processors", "client_js", "pyproject.toml", "requirements-run.lock"} <= set(names)
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_the_page_shows_lines_of_the_whole_file() -> None:
    """What a reader copies from the page is what `deploy/nginx.conf` does."""
    [shown] = re.findall(r"```nginx\n(.*?)```", PAGE.read_text(), re.DOTALL)
    whole = _text("nginx.conf")

    for line in shown.splitlines():
        assert line.partition("#")[0].strip() in whole


def _text(name: str) -> str:
    return (DEPLOY / name).read_text()
