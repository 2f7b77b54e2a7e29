"""`make mutants`: apply each mutant to a copy of the tree and run its tests there; fails if they stay green.

An edit that doesn't apply any more fails as well: it would prove nothing. So does a test that fails without any edit.
"""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from tests.mutants.table import MUTANTS, Mutant
from tests.mutants.trial import PASSED, TESTS_FAILED, run_tests

_ROOT: Final = Path(__file__).resolve().parents[2]
_COPIED: Final = ("gateway", "processors", "tests", "examples", "client_js")


def main() -> int:
    """Run all mutants, or those whose names contain the argument; 1 if one survives."""
    parser = argparse.ArgumentParser(prog="make mutants")
    parser.add_argument("name", nargs="?", default="", help="only those with this in their names")
    wanted = parser.parse_args().name
    chosen = [mutant for mutant in MUTANTS if wanted in mutant.name]
    # A trial waits as long as it computes: for its Valkey, and for leases to run out.
    lanes = min(len(chosen), 2 * (os.cpu_count() or 1), 8)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        trees: queue.SimpleQueue[Path] = queue.SimpleQueue()
        tests = list(dict.fromkeys(test for mutant in chosen for test in mutant.tests))
        first = _copy(Path(folder) / "0")
        code, words = run_tests(first, tests)
        trees.put(first)
        # With what is compiled by then: compiling all of it is most of a trial's time.
        for lane in range(1, lanes):
            trees.put(shutil.copytree(first, Path(folder) / str(lane)))
        if code != PASSED:
            print(words)
            print("These tests fail without any mutant: mend them first.")
            return 1
        with ThreadPoolExecutor(lanes) as pool:
            verdicts = list(pool.map(lambda mutant: _try(mutant, trees), chosen))
    for mutant, verdict in zip(chosen, verdicts, strict=True):
        print(f"{verdict.partition(chr(10))[0]:9} {mutant.name}  ({mutant.file})")
        if verdict != "killed":
            print(verdict)
    good = verdicts.count("killed")
    print(f"{good} of {len(chosen)} mutants were killed, in {time.monotonic() - started:.0f} s")
    return 0 if good == len(chosen) else 1


def _copy(folder: Path) -> Path:
    folder.mkdir()
    for name in _COPIED:
        shutil.copytree(_ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.pdf", "*.jpg", "node_modules"))
    shutil.copy(_ROOT / "pyproject.toml", folder)
    return folder


def _try(mutant: Mutant, trees: queue.SimpleQueue[Path]) -> str:
    tree = trees.get()
    path = tree / "gateway" / mutant.file
    text = path.read_text()
    try:
        if text.count(mutant.old) != 1:
            return f"STALE\n  its text stands {text.count(mutant.old)} times in the file; adapt tests/mutants/table.py"
        path.write_text(text.replace(mutant.old, mutant.new))
        code, words = run_tests(tree, mutant.tests)
    finally:
        path.write_text(text)
        trees.put(tree)
    if code == TESTS_FAILED:
        return "killed"
    if code == PASSED:
        return f"SURVIVED\n  these pass without it: {', '.join(mutant.tests)}"
    return f"ERROR\n{words}"


if __name__ == "__main__":
    sys.exit(main())
