"""How long a program waits that only imports the Python client, and a shell that asks `outlast` for help.

    python -m benchmarks.imports [--runs 15]

Each run is a process of its own with warm bytecode. The floor is Python's own start; the peer is what the client needs
anyhow, pydantic.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

_CASES: tuple[tuple[str, Sequence[str]], ...] = (
    ("python -c pass", ("-c", "pass")),
    ("import pydantic", ("-c", "from pydantic import BaseModel, Field, TypeAdapter")),
    ("import gateway.client", ("-c", "import gateway.client")),
    ("import gateway.client, aiohttp", ("-c", "import gateway.client, aiohttp")),
    ("outlast --help", ("-m", "gateway.cli", "--help")),
    ("outlast submit --help", ("-m", "gateway.cli", "submit", "--help")),
)


def measure(arguments: Sequence[str], environment: dict[str, str]) -> float:
    """Seconds that one process takes."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - began


def main() -> None:
    """Measure all cases in turns, so that a busy moment hits all alike."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    args = parser.parse_args()
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, {args.runs} runs")
    with tempfile.TemporaryDirectory() as bytecode:
        environment = os.environ | {"PYTHONPYCACHEPREFIX": bytecode}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        times: dict[str, list[float]] = {name: [] for name, _ in _CASES}
        for run in range(args.runs + 1):
            for name, arguments in _CASES:
                seconds = measure(arguments, environment)
                if run:
                    # The first run wrote the bytecode.
                    times[name].append(seconds)
    floor = statistics.median(times[_CASES[0][0]])
    for name, measured in times.items():
        median = statistics.median(measured)
        print(f"{name:32} {median * 1000:6.0f} ms, {(median - floor) * 1000:6.0f} ms over Python's own start")


if __name__ == "__main__":
    main()
