"""The shipped pipeline: a scan becomes checked data, by rules or by a model, and what is wrong is named."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from examples import invoice
from gateway.blobs import Blobs
from gateway.protocol import State
from gateway.requests import JobOptions
from gateway.store import NewJob, Store, StoredFile
from processors import Context, load_processors, processor
from processors.ocr import ocr
from tests.jobs import submit
from tests.ocr.conftest import DOCUMENTS
from tests.worker_jobs import end_of, log_of, working

KINDS = load_processors(["examples.invoice"])
TEXT = (DOCUMENTS / "scan.txt").read_text().split("\f")[1]
ANSWERS: list[str] = []
ASKED: list[dict[str, Any]] = []

GOOD = '{"number": "7", "date": "2026-02-19", "lines": [{"article": "Soup", "quantity": 2, "price": 3.5, "amount": 7}],'


@processor("llm")
async def scripted(ctx: Context, input: dict[str, Any]) -> dict[str, str]:
    """A model that says what the test wants, in the shape of the kind `llm`."""
    ASKED.append(input)
    text = ANSWERS.pop(0)
    await ctx.delta(text)
    return {"text": text}


@pytest.fixture
async def _worker(store: Store, blobs: Blobs) -> AsyncIterator[None]:
    """A worker with one place for the pipeline and all of its steps."""
    kinds = (*KINDS.values(), replace(ocr, setup=None), scripted)
    async with working(store, blobs, kinds, max_inline_bytes=200_000):
        yield


async def submit_file(store: Store, blobs: Blobs, path: Path) -> str:
    """An invoice job with a scan."""
    job = await store.job_id("me", None)
    key = blobs.key_for(job)
    size, _ = await blobs.put(key, path.read_bytes(), max_bytes=None)
    files = (StoredFile(path.name, "image/jpeg", size, key),)
    new = NewJob(KINDS["invoice"].document, "me", {}, JobOptions(), "fingerprint", files)
    return (await store.submit(job, new, keyed=False)).record.id


@pytest.mark.ocr
@pytest.mark.usefixtures("_worker")
async def test_a_scanned_invoice_becomes_checked_data(store: Store, blobs: Blobs) -> None:
    """One job and one progress bar: read by the real engine, taken apart by rules, added up."""
    job = await submit_file(store, blobs, DOCUMENTS / "invoice.jpg")

    record = await end_of(store, job, 50)

    assert record.state is State.SUCCEEDED, record.end_data()
    checked = invoice.Checked.model_validate(record.end_data()["result"])
    assert checked.doubts == []
    read = checked.invoice
    assert (read.number, read.date.isoformat(), read.currency) == ("2026-0417", "2026-02-19", "EUR")
    assert (str(read.tax), str(read.total), len(read.lines)) == ("687.80", "3439.00", 8)
    assert (read.lines[3].article, str(read.lines[3].amount)) == ("Humidity logger HL-30 with probe", "357.00")
    log = await log_of(store, job)
    told = [event.data for event in log if event.type == "progress"]
    assert [one["current"] for one in told] == sorted(one["current"] for one in told)
    assert [told[0]["stage"], told[-1]["stage"], told[-1]["current"], told[-1]["total"]] == ["ocr", "check", 100, 100]
    assert {"ocr.page-1.image", "ocr.page-1.lines-0", "ocr.page-1"} <= {
        event.data["index"] for event in log if event.type == "output"
    }
    assert [event.data["step"] for event in log if event.type == "invoice.line"] == ["extract"] * 8


@pytest.mark.ocr
@pytest.mark.usefixtures("_worker")
async def test_a_document_that_is_no_invoice_fails_with_its_step_and_keeps_what_was_read(
    store: Store, blobs: Blobs
) -> None:
    """The receipt of the examples has no number: the extraction says so, and the text stays."""
    job = await submit_file(store, blobs, DOCUMENTS / "receipt.jpg")

    problem = (await end_of(store, job, 50)).end_data()["problem"]

    assert (problem["code"], problem["step"]) == ("fields_missing", "extract")
    assert "a number" in problem["detail"]
    indexes = {event.data["index"] for event in await log_of(store, job) if event.type == "output"}
    assert {"ocr.page-1", "ocr.result.txt"} <= indexes


@pytest.mark.usefixtures("_worker")
async def test_sums_that_differ_are_doubts(store: Store) -> None:
    """A digit that was read wrongly: the invoice is there, and says what somebody should look at."""
    text = TEXT.replace("1,690.00", "1,090.00")
    fields = await end_of(store, (await submit(store, KINDS["extract_fields"].document, input_={"text": text})).id)
    read = fields.end_data()["result"]

    checked = await end_of(store, (await submit(store, KINDS["check_invoice"].document, input_=read)).id)

    doubts = checked.end_data()["result"]["doubts"]
    assert doubts == [
        "Glass case, 140 x 60 x 40 cm: 2 times 845.00 is 1690.00, not 1090.00",
        "The lines and the tax add up to 2839.00, not 3439.00",
    ]


@pytest.mark.usefixtures("_worker")
@pytest.mark.parametrize(
    ("answers", "outcome"),
    [
        ([GOOD + '"total": 7}'], State.SUCCEEDED),
        (["Sure! Here it is.", GOOD + '"total": 7}'], State.SUCCEEDED),
        ([GOOD + '"total": "much"}', GOOD + "}"], State.FAILED),
    ],
    ids=["at once", "the second time", "never"],
)
async def test_a_model_is_asked_once_more_with_what_was_wrong(
    store: Store, monkeypatch: pytest.MonkeyPatch, answers: list[str], outcome: State
) -> None:
    """Never a third time; what it said is on the job's channels, and paid for once."""
    monkeypatch.setattr(invoice, "MODEL", "small")
    ANSWERS[:], ASKED[:] = answers, []

    job = (await submit(store, KINDS["extract_by_model"].document, input_={"text": "2 Soup 7.00"})).id
    record = await end_of(store, job, 50)

    assert record.state is outcome, record.end_data()
    assert len(ASKED) == len(answers)
    assert ASKED[0]["model"] == "small"
    assert ASKED[0]["response_format"]["json_schema"]["schema"]["required"] == ["number", "date", "lines", "total"]
    channels = [event.data["channel"] for event in await log_of(store, job) if event.type == "delta"]
    assert channels == ["ask.text", "ask-again.text"][: len(answers)]
    if len(answers) == 2:
        assert ASKED[1]["messages"][-2] == {"role": "assistant", "content": answers[0]}
        assert ("total" if outcome is State.FAILED else "JSON") in ASKED[1]["messages"][-1]["content"]
    if outcome is State.FAILED:
        assert record.end_data()["problem"]["code"] == "answer_invalid"
    else:
        assert record.end_data()["result"]["total"] == "7"
