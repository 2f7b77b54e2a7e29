"""The examples of the pages on language models and on OpenAI's packages, run as a reader would."""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.store import Store
from tests.llm_jobs import llm_worker
from tests.processes import ran
from tests.serving import Gateway, gateway_for
from tests.token_source import TokenSource

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    """A page's examples in a language."""
    return re.findall(
        rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


@pytest.fixture
async def gateway(
    store: Store, source: TokenSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Gateway]:
    """A gateway without keys, as `outlast up` starts it, and a worker."""
    async with (
        gateway_for(store, tmp_path / "data") as gateway,
        llm_worker(store, gateway.blobs, source, monkeypatch),
    ):
        yield gateway


async def output(*command: str, **environment: str) -> str:
    """What a command prints. It must succeed."""
    code, printed, complained = await ran(*command, **environment)
    assert code == 0, complained
    return printed


async def test_the_python_examples_print_the_answer(gateway: Gateway, source: TokenSource) -> None:
    """A streamed chat, and a response that is left and gone on with."""
    examples = blocks("openai.md", "python")
    assert len(examples) == 2

    for example in examples:
        assert await output(sys.executable, "-c", example, OUTLAST_URL=gateway.url) == source.text


async def test_the_curl_example_follows_the_answer(gateway: Gateway) -> None:
    """The page's line, with this gateway's address."""
    [example] = [block for block in blocks("llm.md", "sh") if block.startswith("curl")]

    printed = await output("bash", "-c", example.replace("http://127.0.0.1:8080", gateway.url))

    assert '"channel":"text"' in printed
    assert '"type":"succeeded"' in printed
