"""What a job made: its result, its outputs and its input files, with Range, ETag and other representations."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from aiohttp import web
from pydantic import BaseModel
from pydantic_core import from_json, to_json

from gateway.blobs import Blobs
from gateway.errors import Conflict, Gone, JobFailed, NotAcceptable, NotFound, RangeNotSatisfiable
from gateway.event_text import decode_event, number_of
from gateway.handlers.context import BLOBS, STORE, owned_job
from gateway.handlers.documents import failure
from gateway.handlers.routes import Answer, Parameter, Route
from gateway.protocol import Cursor, Event, State
from gateway.store import JobRecord

JSON: Final = "application/json"
_RESULT_PREFIX: Final = "result."
_PAGE_EVENTS: Final = 1000
_PAGE_BYTES: Final = 1 << 20
# What a browser may show in place. Everything else is a download: what came from a client or a model may be a page
# with a script in it, and would run in our origin.
_PASSIVE: Final = re.compile(
    r"^(application/(json|x-ndjson)|text/(plain|csv)|image/(png|jpeg|gif|webp|tiff|bmp|avif)|audio/[\w.+-]+|video/[\w.+-]+)$",
    re.ASCII,
)
_CONTENT_TYPE: Final = re.compile(r"^[\w.+-]+/[\w.+-]+( *; *[\w-]+=[\w.+-]+){0,4}$", re.ASCII)
_RANGE: Final = re.compile(r"^bytes=(\d{0,18})-(\d{0,18})$", re.ASCII)


class OutputPage(BaseModel):
    """Outputs in the order of their events. `next` goes into `?after=` for the next page; null at the end."""

    outputs: list[Event]
    next: int | None


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes to serve: in memory, or a blob by its key."""

    content_type: str
    etag: str
    filename: str
    data: bytes | None = None
    blob: str | None = None


async def result_of(app: web.Application, record: JobRecord) -> Any:
    """An ended job's result, wherever it is. Raises why it has none."""
    error = failure(record)
    if error is not None:
        raise error
    if record.result_blob is not None:
        return from_json(await app[BLOBS].get(record.result_blob))
    return record.end_data().get("result")


async def read_result(request: web.Request) -> web.StreamResponse:
    """`GET /v1/jobs/{job}/result`."""
    record = await owned_job(request)
    if not record.terminal:
        raise Conflict(
            f"The job is {record.state.value}; wait for its end on {request.path.removesuffix('/result')}/events.",
            code="not_finished",
            retry_after_seconds=2,
            state=record.state.value,
        )
    end = record.end_data()
    if record.state is State.FAILED:
        problem = end.get("problem") or {}
        raise JobFailed(
            f"The job failed, so it has no result: {problem.get('detail') or problem.get('code')}",
            state=record.state.value,
            problem=problem,
        )
    if record.state is State.CANCELLED:
        raise JobFailed(
            f"The job was cancelled, so it has no result: {end.get('reason')}",
            code="job_cancelled",
            state=record.state.value,
        )
    others = await _representations(request, record)
    chosen = choose(request.headers.get("Accept", ""), [JSON, *(str(event.data["content_type"]) for event in others)])
    if chosen is None:
        types = ", ".join(dict.fromkeys([JSON, *(str(event.data["content_type"]) for event in others)]))
        raise NotAcceptable(f"The result is there as {types}; ask for one of these in Accept.")
    if chosen > 0:
        content = output_content(record.id, others[chosen - 1])
    elif record.result_blob is not None:
        content = Content(JSON, _tag(record.result_blob.encode()), "result.json", blob=record.result_blob)
    else:
        data = to_json(end.get("result"))
        content = Content(JSON, _tag(data), "result.json", data=data)
    return await serve(request, content)


async def _representations(request: web.Request, record: JobRecord) -> list[Event]:
    """The outputs that are the result in another form: `result.txt`, `result.hocr`."""
    accept = request.headers.get("Accept", "")
    if choose(accept, [JSON]) == 0 and _quality(accept, JSON) >= 1:
        # Nothing can be wanted more than JSON is, so nothing needs to be looked up.
        return []
    return [decode_event(text) for text in await request.app[STORE].outputs(record.id, _RESULT_PREFIX)]


async def list_outputs(request: web.Request) -> web.Response:
    """`GET /v1/jobs/{job}/outputs`. The events' bytes are passed on as they are, never decoded."""
    record = await owned_job(request)
    after = Cursor.parse(request.query.get("after", "0")).number
    page: list[bytes] = []
    size, last, more = 0, after, False
    for text in await request.app[STORE].outputs(record.id):
        number = number_of(text)
        if number <= after:
            continue
        size += len(text)
        if page and (len(page) >= _PAGE_EVENTS or size > _PAGE_BYTES):
            more = True
            break
        page.append(text)
        last = number
    body = b'{"outputs":[%b],"next":%b}' % (b",".join(page), b"%d" % last if more else b"null")
    return web.Response(body=body, content_type=JSON, headers={"Cache-Control": "no-store"})


async def read_output(request: web.Request) -> web.StreamResponse:
    """`GET /v1/jobs/{job}/outputs/{index}`."""
    record = await owned_job(request)
    index = request.match_info["index"]
    text = await request.app[STORE].output(record.id, index)
    if text is None:
        raise NotFound(f"The job has no output {index[:64]!r}; GET {request.path.rpartition('/')[0]} lists them.")
    job, event = record.id, decode_event(text)
    if "source" in event.data:
        # A step's output, relayed: the bytes are where the step's own job has them.
        _, _, _, job, _, name = str(event.data["source"]).split("/", 5)
        text = await request.app[STORE].output(job, name)
        if text is None:
            raise Gone("The step that made this output has expired.")
        event = decode_event(text)
    return await serve(request, output_content(job, event))


def output_content(job: str, event: Event) -> Content:
    """An output as bytes: its value, or the blob that its attempt wrote under its index."""
    index = str(event.data["index"])
    content_type = str(event.data.get("content_type", JSON))
    # The same index again replaces what it had: the event's number is a part of what names the content.
    tag = f"{event.cursor}".encode()
    if "url" in event.data:
        blob = Blobs.output_key(job, event.attempt, index)
        return Content(content_type, _tag(tag + blob.encode()), index, blob=blob)
    value = event.data.get("value")
    data = value.encode() if isinstance(value, str) and content_type != JSON else to_json(value)
    return Content(content_type, _tag(tag + data), index, data=data)


async def read_file(request: web.Request) -> web.StreamResponse:
    """`GET /v1/jobs/{job}/files/{name}`."""
    record = await owned_job(request)
    name = request.match_info["name"]
    for file in record.files:
        if file.name == name:
            content = Content(file.content_type, _tag(file.blob.encode()), file.name, blob=file.blob)
            return await serve(request, content)
    raise NotFound(f"The job has no file {name[:100]!r}.")


# --- serving bytes ----------------------------------------------------------------------------------------------------


async def serve(request: web.Request, content: Content) -> web.StreamResponse:
    """Answer with a content's bytes, or the part of them that was asked for."""
    blobs = request.app[BLOBS]
    size = len(content.data) if content.data is not None else await blobs.size(content.blob or "")
    headers = {
        "ETag": content.etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Content-Disposition": _disposition(content),
        "Vary": "Accept",
    }
    if _matches(request.headers.get("If-None-Match"), content.etag):
        return web.Response(status=304, headers=headers)
    # [spec] "If the validator does not match, the Range header field is to be ignored." (RFC 9110, section 13.1.5)
    condition = request.headers.get("If-Range")
    wanted = requested_range(request.headers.get("Range") if condition in {None, content.etag} else None, size)
    start, end, status = (*wanted, 206) if wanted is not None else (0, size, 200)
    if wanted is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"

    # A header's value that a client or a processor chose: what could break out of it is served as plain bytes.
    content_type = content.content_type if _CONTENT_TYPE.fullmatch(content.content_type) else "application/octet-stream"
    if content_type.startswith("text/") and "charset" not in content_type:
        content_type += "; charset=utf-8"
    headers["Content-Type"] = content_type
    if content.data is not None:
        return web.Response(status=status, body=content.data[start:end], headers=headers)
    response = web.StreamResponse(status=status, headers=headers)
    response.content_length = end - start
    await response.prepare(request)
    if request.method != "HEAD":
        async for chunk in blobs.stream(content.blob or "", start, end):
            await response.write(chunk)
    await response.write_eof()
    return response


def requested_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The first byte and the one after the last that a Range asks for; None for the whole.

    A header that isn't a single range of bytes is ignored, as the standard allows. Raises `RangeNotSatisfiable`.
    """
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None:
        return None
    first, last = match.groups()
    if not first and not last:
        return None
    if not first:
        start, end = max(0, size - int(last)), size
        satisfiable = int(last) > 0 and size > 0
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < int(first):
            return None
        satisfiable = start < size
    if not satisfiable:
        raise RangeNotSatisfiable(f"There are {size} bytes; this range has none of them.", size=size)
    return start, end


def _matches(header: str | None, etag: str) -> bool:
    if header is None:
        return False
    return header.strip() == "*" or etag in {part.strip().removeprefix("W/") for part in header.split(",")}


def _tag(data: bytes) -> str:
    return f'"{hashlib.sha256(data).hexdigest()[:32]}"'


def _disposition(content: Content) -> str:
    media_type = content.content_type.split(";", 1)[0].strip().lower()
    kind = "inline" if _PASSIVE.fullmatch(media_type) else "attachment"
    name = content.filename
    ascii_name = re.sub(r'[^\x20-\x7e]|["\\%]', "_", name)
    value = f'{kind}; filename="{ascii_name}"'
    if ascii_name != name:
        # [spec] RFC 6266, section 4.3: filename* for what ASCII can't say, with the other as the fallback.
        value += f"; filename*=UTF-8''{quote(name, safe='')}"
    return value


# --- negotiation ------------------------------------------------------------------------------------------------------


def choose(accept: str, offered: Sequence[str]) -> int | None:
    """The index of the offered content type that `Accept` likes best, the first among equals; None if it likes none."""
    if not accept.strip():
        return 0
    qualities = [_quality(accept, content_type) for content_type in offered]
    best = max(qualities)
    return qualities.index(best) if best > 0 else None


def _quality(accept: str, content_type: str) -> float:
    """How much `Accept` likes a content type, 0 to 1; the most exact of its ranges decides (RFC 9110, 12.5.1)."""
    media_type = content_type.split(";", 1)[0].strip().lower()
    main = media_type.split("/", 1)[0]
    best = (-1, 0.0)
    for part in accept.split(",")[:64]:
        media_range, *parameters = (piece.strip().lower() for piece in part.split(";"))
        exactness = {media_type: 2, f"{main}/*": 1, "*/*": 0}.get(media_range)
        if exactness is not None and exactness > best[0]:
            best = (exactness, _weight(parameters))
    return best[1]


def _weight(parameters: Sequence[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q" and re.fullmatch(r"[01](\.\d{0,3})?", value.strip(), re.ASCII):
            return min(1.0, float(value))
    return 1.0


_RANGE_HEADERS: Final = (
    Parameter("Range", "`bytes=0-99`: only a part.", place="header"),
    Parameter("If-None-Match", "The ETag that you have: 304 if it is still the same.", place="header"),
)
_ANY: Final[tuple[str, ...]] = ("*/*",)
_BYTES: Final[dict[int, Answer]] = {
    200: Answer("The content, with its own type.", content_types=_ANY, headers={"ETag": "Names this content."}),
    206: Answer("A part of it.", content_types=_ANY),
    304: Answer("You have it already.", content_types=()),
}

routes: Final = (
    Route(
        "GET",
        "/v1/jobs/{job}/result",
        read_result,
        "Fetch a job's result",
        "JSON by default; with `Accept`, any other form that the processor left (an output whose index begins with"
        " `result.`). 409 while the job is open, 422 if it failed or was cancelled, 410 once it has expired.",
        responses=_BYTES,
        parameters=(Parameter("Accept", "`application/json`, `text/plain`, ...", place="header"), *_RANGE_HEADERS),
        right="read",
    ),
    Route(
        "GET",
        "/v1/jobs/{job}/outputs",
        list_outputs,
        "List a job's outputs",
        "The newest output event of each index, in the order of their numbers.",
        responses={200: Answer("A page of output events.", OutputPage)},
        parameters=(Parameter("after", "Only events with a higher number.", {"type": "string", "default": "0"}),),
        right="read",
    ),
    Route(
        "GET",
        "/v1/jobs/{job}/outputs/{index}",
        read_output,
        "Fetch one output",
        responses=_BYTES,
        parameters=_RANGE_HEADERS,
        right="read",
    ),
    Route(
        "GET",
        "/v1/jobs/{job}/files/{name}",
        read_file,
        "Fetch an input file",
        responses=_BYTES,
        parameters=_RANGE_HEADERS,
        right="read",
    ),
)
