"""Running a few tests in a copy of the tree, without a second's imports for each: forked after the foreign packages."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

# pytest's codes, away from that of a process that ended with an exception.
_FIRST_CODE: Final = 100
PASSED: Final = _FIRST_CODE + 0
TESTS_FAILED: Final = _FIRST_CODE + 1
# A mutant may wait for ever for what it has taken out.
_TEST_SECONDS: Final = 20
# The last one makes an error of what a test leaves behind that was broken off, which each of these is meant to be.
_LEFT_OUT: Final = ("cacheprovider", "hypothesispytest", "valkey", "anyio", "unraisableexception")
_CONTEXT: Final = multiprocessing.get_context("forkserver")
# Nothing of the tree itself: that is imported from the copy.
_CONTEXT.set_forkserver_preload(
    ["pytest", "aiohttp.web", "redis.asyncio", "pydantic_settings", "jsonschema", "obstore"]
)


def run_tests(tree: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Run tests of the copy; returns `PASSED`, `TESTS_FAILED` or another code, and what was said."""
    said = tree / "said"
    process = _CONTEXT.Process(target=_test, args=(tree, list(tests), said))
    process.start()
    process.join()
    code = -1 if process.exitcode is None else process.exitcode
    process.close()
    return code, said.read_text(errors="replace")[-4000:]


def _test(tree: Path, tests: list[str], said: Path) -> None:
    with said.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = os.fdopen(1, "w", closefd=False)
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    import pytest

    # What the tests of the table don't need and costs a second or two to import.
    left_out = [word for plugin in _LEFT_OUT for word in ("-p", f"no:{plugin}")]
    # In the folder that they share otherwise, trials side by side remove each other's.
    options = ["-q", "-x", *left_out, f"--timeout={_TEST_SECONDS}", f"--basetemp={tree / 'tmp'}"]
    sys.exit(_FIRST_CODE + int(pytest.main([*options, *tests])))
