"""The fixture for other people's tests: it is found by pytest, and the example in the docs passes with it."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from gateway.edge.testing import EdgeFactory, running_edges
from gateway.errors import ConfigurationError

ROOT = Path(__file__).parents[2]


def test_the_example_passes_as_it_is_in_a_project_of_its_own(tmp_path: Path) -> None:
    """Nothing but the installed package makes the fixture known there."""
    (tmp_path / "test_mine.py").write_text((ROOT / "examples" / "edge_test.py").read_text())

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )

    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_a_running_hop_takes_faults_and_restarts_from_a_plain_test(outlast_edge: EdgeFactory) -> None:
    """No event loop is needed."""
    edge = outlast_edge("http://127.0.0.1:9", "cloudflare", "nginx-default")
    edge.fault("524_now")

    with pytest.raises(urllib.error.HTTPError) as failed:
        urllib.request.urlopen(edge.url, timeout=10)

    failed.value.close()
    assert failed.value.status == 524
    assert [record.status for record in edge.requests] == [524]
    assert edge.restart() >= 0
    with pytest.raises(ValueError, match="no fault"):
        edge.fault("no such")


def test_a_hop_that_can_t_start_says_so_where_it_is_asked_for() -> None:
    """Not in its thread."""
    with pytest.raises(ConfigurationError), running_edges("ftp://nowhere"):
        pass
