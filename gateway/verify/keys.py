"""Promise 6, same Idempotency-Key, same job: the jobs of these checks start in an hour, and are cancelled before."""

from __future__ import annotations

import asyncio
import json
import secrets
from typing import Any, Final

import aiohttp

from gateway.verify.held import held_run
from gateway.verify.report import Broken, NotTested
from gateway.verify.streams import submit_over_socket, submit_stream
from gateway.verify.target import Answer, accepted_job
from gateway.verify.trial import Check, Trial

_AT_ONCE: Final = 20
_LOST_ANSWERS: Final = 3
# Long enough that a `run` waits for its job before that is cancelled; if it comes later, it finds it ended.
_HELD_SECONDS: Final = 0.5


async def _same(trial: Trial) -> str:
    body, key = _body(trial), a_key()
    first = await trial.target.submit(body, headers=key)
    again = await trial.target.submit(body, headers=key)
    job = _one_job([first, again])
    if again.headers.get("Idempotency-Replayed") != "true":
        raise Broken("the repeated submit got the same job, but no `Idempotency-Replayed: true`")
    return f"the second submit was answered with the first one's job {job}, `Idempotency-Replayed: true`"


async def _at_once(trial: Trial) -> str:
    body, key = _body(trial), a_key()
    answers = await asyncio.gather(*(trial.target.submit(body, headers=key) for _ in range(_AT_ONCE)))
    job = _one_job(list(answers))
    return f"{_AT_ONCE} submits at the same time made one job, {job}"


async def _lost_answer(trial: Trial) -> str:
    body, key = _body(trial), a_key()
    for _ in range(_LOST_ANSWERS):
        await _submit_and_leave(trial, body, key)
    answers = [await trial.target.submit(body, headers=key) for _ in range(2)]
    job = _one_job(answers)
    return f"after {_LOST_ANSWERS} submits whose answers nobody read, the repeat got job {job}, twice"


async def _submit_and_leave(trial: Trial, body: dict[str, Any], key: dict[str, str]) -> None:
    """Send a whole submit and cut the connection before its answer is read."""
    sent = asyncio.Event()

    async def content() -> Any:
        yield json.dumps(body).encode()
        sent.set()

    async def post() -> None:
        target = trial.target
        request = target.session.post(
            target.next_base() + target.submit_path,
            headers=target.headers({"Content-Type": "application/json", **key}),
            data=content(),
        )
        async with request as response:
            await response.read()

    posting = asyncio.ensure_future(post())
    leaving = asyncio.ensure_future(sent.wait())
    await asyncio.wait({posting, leaving}, return_when=asyncio.FIRST_COMPLETED, timeout=10)
    # The body is on its way; cancelling closes the connection under the answer.
    for task in (posting, leaving):
        task.cancel()
    for result in await asyncio.gather(posting, leaving, return_exceptions=True):
        if isinstance(result, Exception) and not isinstance(result, aiohttp.ClientError):
            raise result


async def _other_body(trial: Trial) -> str:
    body, key = _body(trial), a_key()
    await trial.target.new_job(body, headers=key)
    answer = await trial.target.submit(body | {"priority": "low"}, headers=key)
    if answer.status != 422 or answer.code != "idempotency_key_reused":
        raise Broken(f"the same key with another request was answered {answer.status} {answer.code or ''}, not 422")
    return "422 idempotency_key_reused"


async def _other_paths(trial: Trial) -> str:
    body, key = _body(trial), a_key()
    job = await trial.target.new_job(body, headers=key)
    silence = trial.dead_after_seconds
    frame = {**body, "kind": trial.target.work.kind, "idempotency_key": key["Idempotency-Key"]}
    answer = await submit_over_socket(trial.target, frame, silence_seconds=silence)
    found = {"a WebSocket": answer["job"]["id"], "multipart": await _multipart(trial, body, key)}
    async with submit_stream(trial.target, body, key, silence_seconds=silence) as (_, streamed):
        found["a POST's stream"] = streamed
    for path, other in found.items():
        if other != job:
            raise Broken(f"the same key and request over {path} made job {other}; as JSON it had made {job}")
    return f"JSON, {', '.join(found)}: all of them job {job}"


async def _held(trial: Trial) -> str:
    body, key = _body(trial), a_key()
    job = await trial.target.new_job(body, headers=key)
    async with held_run(trial.target, body, key) as run:
        await asyncio.sleep(_HELD_SECONDS)
        await trial.target.cancel(job)
        try:
            document = await run.document(trial.dead_after_seconds)
        except Broken as error:
            raise Broken(f"`run` with the key of job {job} did not end when that job was cancelled: {error}") from None
    if document.get("id") != job:
        raise Broken(f"the same key and request over `run` made job {document.get('id')}; as JSON it had made {job}")
    return f"`run` waited for job {job} of an earlier submit, and ended with it"


async def _multipart(trial: Trial, body: dict[str, Any], key: dict[str, str]) -> str:
    form = aiohttp.FormData(default_to_multipart=True)
    form.add_field("input", json.dumps(body["input"]))
    form.add_field("options", json.dumps({name: value for name, value in body.items() if name != "input"}))
    answer = await trial.target.ask("POST", trial.target.submit_path, headers=key, body=form)
    trial.target.note(answer)
    return accepted_job(answer)


async def _repeated_stream(trial: Trial) -> str:
    body, key = _body(trial), a_key()
    job = await trial.target.new_job(body, headers=key)
    again = await trial.target.submit(body, headers={**key, "Last-Event-ID": "1"})
    if accepted_job(again) != job:
        raise Broken("a POST with `Last-Event-ID` and the job's key made another job")
    keyless = await trial.target.submit(body, headers={"Last-Event-ID": "1"})
    if keyless.status != 409:
        raise Broken(f"a POST with `Last-Event-ID` and no key was answered {keyless.status}, not 409")
    return "with its key it finds the job, without one it is 409"


async def _other_owner(trial: Trial) -> str:
    if trial.other_key is None:
        raise NotTested("give the API key of a second owner with --other-key")
    body, key = _body(trial), a_key()
    job = await trial.target.new_job(body, headers=key)
    answer = await trial.target.submit(body, headers=key, api_key=trial.other_key)
    other = accepted_job(answer)
    await trial.target.ask(
        "POST",
        f"/v1/jobs/{other}/cancel",
        headers={"Content-Type": "application/json"},
        api_key=trial.other_key,
    )
    if other == job:
        raise Broken(f"two owners with the same key share job {job}")
    hidden = await trial.target.ask("GET", f"/v1/jobs/{job}", api_key=trial.other_key)
    if hidden.status != 404:
        raise Broken(f"another owner's GET of job {job} was answered {hidden.status}, not 404")
    return "each owner has a job of their own, and doesn't see the other's"


def _body(trial: Trial) -> dict[str, Any]:
    return trial.target.request_body(trial.target.work.steady, held=True)


def a_key() -> dict[str, str]:
    """An Idempotency-Key that nobody has used yet, as headers."""
    return {"Idempotency-Key": f"verify-{secrets.token_hex(12)}"}


def _one_job(answers: list[Answer]) -> str:
    jobs = {accepted_job(answer) for answer in answers}
    if len(jobs) > 1:
        raise Broken(
            f"{len(answers)} submits with one key and one body made {len(jobs)} jobs: {', '.join(sorted(jobs)[:3])}"
        )
    return jobs.pop()


CHECKS: Final = (
    Check(6, "same-job", "A repeated submit gets the first one's job, and is told so.", _same),
    Check(6, "at-once", "Many submits at the same time are one job.", _at_once),
    Check(6, "lost-answer", "A submit whose answer is lost and that is sent again is one job.", _lost_answer),
    Check(6, "another-request", "The key with another request is refused.", _other_body),
    Check(6, "every-path", "The key counts over every way to submit.", _other_paths),
    Check(6, "key-of-a-run", "So it does over a `run`, which waits for the first submit's job.", _held),
    Check(6, "repeated-stream", "A POST that repeats a broken stream never submits.", _repeated_stream),
    Check(6, "each-owner", "Two owners may use the same key.", _other_owner),
)  # fmt: skip
