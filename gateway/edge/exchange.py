"""One request through a hop: the head and body to the origin, the answer back, under the profile's rules.

Reading the origin is the main line; a request's body is sent by a task beside it, since an origin may answer before it
has all of it. Whatever ends the exchange early (a limit, the client's leaving, a restart) notes the reason and resets
the connection to the origin, which ends the main line's waiting.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from gateway.edge import pages
from gateway.edge.brand import Passage, change_request, change_response, loops
from gateway.edge.clock import Clock, Silence
from gateway.edge.failures import Cut, Failure, Garbled, Refused
from gateway.edge.faults import STATUSES, Fault, Faults
from gateway.edge.hold import Coding, Hold, choose_coding, choose_hold
from gateway.edge.message import (
    LAST_CHUNK,
    Body,
    Headers,
    RequestHead,
    ResponseHead,
    chunk,
    parse_response,
    response_framing,
    split_head,
)
from gateway.edge.metrics import Metrics
from gateway.edge.origin import Link, Origin
from gateway.edge.profile import Profile
from gateway.edge.tunnel import Moments, tunnel
from gateway.edge.wire import Wire

# A body that waits to be sent whole lies in memory up to this, then on disk.
_SPOOL_BYTES: Final = 1024 * 1024
_READ_BYTES: Final = 64 * 1024


@dataclass(slots=True)
class Hop:
    """What all exchanges of one listener share."""

    profile: Profile
    clock: Clock
    origin: Origin
    metrics: Metrics
    faults: Faults
    random: random.Random
    marked: bool


class _Stale(Exception):
    """A used connection to the origin ended without a byte of an answer."""


class Exchange:
    """One request and its answer. `run` says whether the client's connection serves another one."""

    def __init__(self, hop: Hop, client: Wire, head: RequestHead, body: Body, ray: str) -> None:
        self._hop = hop
        self._client = client
        self._head = head
        self._record = hop.metrics.begin(ray, head.method, head.target.partition("?")[0])
        address = client.transport.get_extra_info("peername")
        self._passage = Passage(
            ray, address[0] if address else "", head.headers.get("host") or hop.origin.netloc, hop.origin.netloc
        )
        timers = hop.profile.timers
        self._silence = Silence(timers, hop.clock, hop.random.uniform(0, timers.jitter_seconds))
        self._fault: Fault | None = None
        self._link: Link | None = None
        self._upload: asyncio.Task[None] | None = None
        self._uploaded = False
        self._failure: Failure | None = None
        self._saved: tempfile.SpooledTemporaryFile[bytes] | None = None
        self._body = body
        self._has_body = not body.complete
        self._upgrade = head.upgrades and hop.profile.websocket.enabled and body.complete
        self._record.websocket = self._upgrade
        self._ack: asyncio.TimerHandle | None = None
        self._reply_begun = False
        self._reply_chunked = False
        self._reply_head = b""
        self._keep = head.keeps_alive

    def fail(self, failure: Failure) -> None:
        """End it, for this reason unless there is an earlier one."""
        if self._failure is None:
            self._failure = failure
        if self._link is not None:
            self._link.wire.abort()

    async def run(self) -> bool:
        """Do it. Cancelling resets both connections."""
        self._client.on_end = self._client_left
        if self._client.ended:
            self._client_left()
        how = "cancelled"
        try:
            how = await self._relay()
        except Refused as refusal:
            how = refusal.reason
            await self._refuse(refusal)
        except Garbled:
            how = "garbled"
            await self._refuse(Refused(self._hop.profile.errors.garbled, "garbled"))
        except Cut as cut:
            how = cut.reason
            self._keep = False
            self._cut()
        finally:
            self._client.on_end = None
            if (last := self._silence.last) is not None:
                self._record.last_gap_seconds = self._hop.clock.now() - last
            await self._leave()
            if self._saved is not None:
                self._saved.close()
            self._hop.metrics.end(self._record, how)
        return self._keep and not self._client.ended

    # --- before the origin ------------------------------------------------------------------------------------------

    def _check(self) -> None:
        """Refuse what this hop does not let through."""
        hop, rules, errors = self._hop, self._hop.profile.request, self._hop.profile.errors
        if rules.max_in_flight and hop.metrics.in_flight > rules.max_in_flight:
            raise Refused(errors.too_many, "too_many")
        if rules.max_loops and loops(self._head.headers, hop.profile.brand) >= rules.max_loops:
            raise Refused(errors.loop, "loop", code=1000 if hop.profile.brand == "cloudflare" else None)
        if len(self._head.target) > rules.max_url_bytes:
            raise Refused(errors.url_too_long, "url_too_long")
        if rules.max_body_bytes and self._body.length > rules.max_body_bytes:
            raise Refused(errors.body_too_large, "body_too_large")
        self._fault = hop.faults.take(self._head.method, self._head.target)
        if self._fault is None:
            return
        name = self._fault.fault
        if name == "challenge":
            raise Refused(403, "challenge")
        code = name.removesuffix("_now")
        if code.isdecimal():
            raise Refused(STATUSES.get(code, int(code)), "fault", code=int(code))

    async def _relay(self) -> str:
        self._check()
        if (self._head.headers.get("expect") or "").lower() == "100-continue" and self._has_body:
            self._client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._head.headers.drop("Expect")
        rules = self._hop.profile.request
        twice = self._fault is not None and self._fault.fault == "duplicate_request"
        if self._has_body and (twice or rules.body_buffering == "full" or rules.origin_http == "1.0"):
            # HTTP/1.0 has no way to send a body whose length is not known yet.
            await self._save_body(None)
        elif self._has_body and rules.body_buffering == "standard" and rules.inspect_bytes:
            await self._save_body(rules.inspect_bytes)
        if twice:
            await self._send()
            await self._answer_head()
            await self._leave()
        head = await self._first_head()
        return await self._answer(head)

    async def _save_body(self, most: int | None) -> None:
        """Read the body, or the beginning of it, before the origin is asked."""
        self._saved = tempfile.SpooledTemporaryFile(_SPOOL_BYTES)  # noqa: SIM115 - closed when the exchange is left
        while not self._body.complete and (most is None or self._record.request_bytes < most):
            self._saved.write(await self._read_body())
        self._saved.seek(0)

    async def _read_body(self) -> bytes:
        """The next piece of the body from the client. Raises `Refused` when it is too much, or too slow."""
        hop = self._hop
        try:
            async with hop.clock.limit(hop.profile.timers.write_seconds):
                data = await self._client.read()
        except TimeoutError:
            raise Refused(hop.profile.errors.write_stalled, "write_stalled") from None
        if not data:
            raise Cut("client_left")
        try:
            piece = self._body.feed(data)
        except Garbled:
            raise Refused(400, "bad_request") from None
        if self._body.complete:
            self._client.unread(self._body.leftover)
        self._record.request_bytes += len(piece)
        most = hop.profile.request.max_body_bytes
        if most and self._record.request_bytes > most:
            raise Refused(hop.profile.errors.body_too_large, "body_too_large")
        return piece

    # --- to the origin ----------------------------------------------------------------------------------------------

    async def _first_head(self) -> ResponseHead:
        """Send the request and wait for the answer's head; once more if a used connection had ended just then."""
        await self._send()
        try:
            return await self._answer_head()
        except _Stale:
            if self._hop.profile.request.reuse_race or self._has_body:
                raise Refused(self._hop.profile.errors.garbled, "reuse_race") from None
        await self._leave()
        await self._send(fresh=True)
        return await self._answer_head()

    async def _send(self, *, fresh: bool = False) -> None:
        self._raise_failure()
        self._link = link = await self._hop.origin.link(fresh=fresh or self._upgrade)
        self._record.reused = link.reused
        self._raise_failure()
        head = RequestHead(self._head.method, self._head.target, "1.1", Headers(self._head.headers.items))
        head.headers.drop_hop_by_hop()
        change_request(self._hop.profile, head.headers, self._passage)
        if self._upgrade:
            head.headers.set("Connection", "Upgrade")
            head.headers.set("Upgrade", "websocket")
            if not self._hop.profile.websocket.extensions:
                head.headers.drop("Sec-WebSocket-Extensions")
        chunked = self._body.framing == "chunked"
        if chunked and self._saved is not None and self._body.complete:
            head.headers.set("Content-Length", str(self._record.request_bytes))
            chunked = False
        elif chunked:
            head.headers.set("Transfer-Encoding", "chunked")
        link.wire.write(head.encode(self._hop.profile.request.origin_http))
        self._uploaded = False
        if not self._has_body:
            self._sent()
        else:
            self._upload = asyncio.create_task(self._send_body(link.wire, chunked=chunked), name="an edge's upload")

    async def _send_body(self, wire: Wire, *, chunked: bool) -> None:
        try:
            if self._saved is not None:
                self._saved.seek(0)
                while piece := self._saved.read(_READ_BYTES):
                    await self._write_origin(wire, chunk(piece) if chunked else piece)
            while not self._body.complete:
                piece = await self._read_body()
                await self._write_origin(wire, chunk(piece) if chunked else piece)
            if chunked:
                wire.write(LAST_CHUNK)
            self._uploaded = True
            self._sent()
        except Failure as failure:
            self.fail(failure)

    async def _write_origin(self, wire: Wire, data: bytes) -> None:
        wire.write(data)
        try:
            async with self._hop.clock.limit(self._hop.profile.timers.write_seconds):
                await wire.drain()
        except TimeoutError:
            raise Refused(self._hop.profile.errors.write_stalled, "write_stalled") from None

    def _sent(self) -> None:
        """The request is on its way: from now on the origin's silence counts."""
        self._silence.break_()
        ack = self._hop.profile.timers.ack_seconds
        if ack:
            when = self._hop.clock.when(self._hop.clock.now() + ack)
            self._ack = asyncio.get_running_loop().call_at(when, self._check_acknowledged)

    def _check_acknowledged(self) -> None:
        if self._link is not None and self._record.origin_status is None and self._link.wire.unacknowledged():
            self.fail(Refused(self._hop.profile.errors.not_acknowledged, "not_acknowledged"))

    # --- what ends the waiting --------------------------------------------------------------------------------------

    def _client_left(self) -> None:
        self.fail(Cut("client_left"))

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _read_origin(self) -> bytes:
        assert self._link is not None
        try:
            async with self._silence.watch():
                data = await self._link.wire.read()
        except TimeoutError:
            raise self._silent() from None
        finally:
            self._silence.unwatch()
        self._raise_failure()
        if data and (last := self._silence.last) is not None:
            gap = self._hop.clock.now() - last
            self._record.largest_gap_seconds = max(self._record.largest_gap_seconds, gap)
        return data

    def _silent(self) -> Failure:
        """What the end of patience looks like, by what the client has got."""
        errors = self._hop.profile.errors
        if self._reply_begun:
            return Cut("read_timeout")
        if self._silence.has_head:
            return Refused(errors.cut, "read_timeout")
        return Refused(errors.silent, "read_timeout")

    # --- from the origin --------------------------------------------------------------------------------------------

    async def _answer_head(self) -> ResponseHead:
        """The final head; interim ones pass by the way. Raises `_Stale` where a used connection gave nothing."""
        assert self._link is not None
        rules = self._hop.profile.response
        buffer = b""
        while True:
            before = self._silence.last
            while (parts := split_head(buffer)) is None:
                data = await self._read_origin()
                if not data:
                    if self._link.reused and not buffer:
                        raise _Stale
                    raise Refused(self._hop.profile.errors.garbled, "empty_answer")
                # Each read counts, also of half a head.
                self._count_read()
                buffer += data
                if len(buffer) > self._hop.profile.request.max_head_bytes and split_head(buffer) is None:
                    raise Refused(self._hop.profile.errors.garbled, "head_too_large")
            head = parse_response(parts[0])
            buffer = parts[1]
            if not head.interim:
                self._link.wire.unread(buffer)
                return head
            if rules.interim == "absolute" and before is not None:
                self._silence.break_(before)
            if rules.interim != "drop" and self._head.version == "1.1":
                self._client.write(head.encode())

    def _count_read(self) -> None:
        if self._hop.profile.timers.counts == "read":
            self._count()

    def _count(self) -> None:
        """End the origin's silence, unless the request is still being sent: then it has not begun."""
        if self._uploaded or not self._has_body:
            self._silence.break_()

    async def _answer(self, head: ResponseHead) -> str:
        assert self._link is not None
        hop, rules = self._hop, self._hop.profile.response
        self._record.origin_status = head.status
        self._record.first_header_seconds = hop.clock.now() - self._record.started_seconds
        if head.status in rules.replaced_statuses:
            raise Refused(head.status, "replaced")
        if head.status == 101:
            return await self._tunnel(head)
        framing, length = response_framing(head, self._head.method)
        origin_keeps = head.keeps_alive and hop.profile.request.origin_http == "1.1"
        head.headers.drop_hop_by_hop()
        hold = choose_hold(rules, self._head.method, head)
        coding = choose_coding(rules, self._accepted_codings(), head) if framing != "none" else None
        change_response(hop.profile, head.headers, self._passage)
        self._frame_reply(head, framing)
        if hop.profile.timers.counts == "read":
            self._silence.has_head = True
        if framing == "none" or not rules.hold_head:
            await self._begin_reply()
        body = Body(framing, length)
        whole = await self._pass_body(body, hold, coding)
        if whole:
            await self._pass(hold.end(), coding, last=True)
            await self._end_reply()
            if origin_keeps and not body.leftover and (self._uploaded or not self._has_body):
                link, self._link = self._link, None
                hop.origin.give_back(link)
            return "complete"
        if not self._reply_begun and not hold.held:
            raise Garbled("a body that is not whole")
        await self._pass(hold.end(), coding)
        raise Cut("origin_closed")

    async def _pass_body(self, body: Body, hold: Hold, coding: Coding | None) -> bool:
        """Pass the body on; whether it came whole."""
        while not body.complete:
            data = await self._read_origin()
            if not data:
                return body.end()
            self._count_read()
            piece = body.feed(data)
            if piece and self._record.first_byte_seconds is None:
                self._record.first_byte_seconds = self._hop.clock.now() - self._record.started_seconds
            self._record.response_bytes += len(piece)
            passed = hold.feed(piece)
            self._record.most_held_bytes = max(self._record.most_held_bytes, hold.held)
            if passed:
                await self._pass(passed, coding)
                # While the client was slow nobody was listening to the origin.
                self._count()
        return True

    async def _tunnel(self, head: ResponseHead) -> str:
        """Be a tunnel for an upgraded connection until it ends."""
        if not self._upgrade or self._link is None:
            raise Garbled("an upgrade that nobody asked for")
        hop, rules = self._hop, self._hop.profile.websocket
        head.headers.drop_hop_by_hop()
        head.headers.set("Connection", "Upgrade")
        head.headers.set("Upgrade", "websocket")
        change_response(hop.profile, head.headers, self._passage)
        self._mark(head.headers)
        self._record.status = 101
        self._reply_begun = True
        self._client.write(head.encode())
        idle = rules.idle_seconds
        if rules.idle_most_seconds > idle:
            idle = hop.random.uniform(idle, rules.idle_most_seconds)
        # The tunnel itself sees when the client leaves.
        self._client.on_end = None
        moments = Moments(hop.clock, idle, hop.profile.timers.total_seconds)
        how = await tunnel(self._client, self._link.wire, moments, self._record)
        self._raise_failure()
        # Both sides have been closed, and may still be sending their last bytes.
        self._link = None
        self._keep = False
        return how

    def _accepted_codings(self) -> set[str]:
        parts = (part.replace(" ", "") for part in self._head.headers.tokens("accept-encoding"))
        return {part.partition(";")[0] for part in parts if not part.endswith((";q=0", ";q=0.0"))}

    # --- to the client ----------------------------------------------------------------------------------------------

    def _frame_reply(self, head: ResponseHead, framing: str) -> None:
        """Say how the body ends, and whether the connection goes on."""
        unknown = framing in {"chunked", "close"} or (framing == "length" and not head.headers.get("content-length"))
        if unknown and self._head.version == "1.1":
            self._reply_chunked = True
            head.headers.set("Transfer-Encoding", "chunked")
        elif unknown:
            self._keep = False
        self._set_connection(head.headers)
        if 520 <= head.status < 530:
            head.reason = ""
        self._record.status = head.status
        self._reply_head = head.encode()

    def _set_connection(self, headers: Headers) -> None:
        # What is left of a request that nobody read would be taken for the next one.
        if not self._body.complete:
            self._keep = False
        if not self._keep:
            headers.set("Connection", "close")
        elif self._head.version == "1.0":
            headers.set("Connection", "keep-alive")
        self._mark(headers)

    def _mark(self, headers: Headers) -> None:
        if self._hop.marked:
            headers.set("X-Simulated-Edge", self._hop.profile.name)

    async def _begin_reply(self) -> None:
        if not self._reply_begun:
            self._reply_begun = True
            await self._write_client(self._reply_head)

    async def _pass(self, data: bytes, coding: Coding | None, *, last: bool = False) -> None:
        """Give the client a piece of the body."""
        if coding is not None:
            data = coding.feed(data) if data else b""
            data += coding.end() if last else b""
        if not data:
            return
        begun = not self._reply_begun
        self._reply_begun = self._silence.has_head = True
        if self._record.passed_first_byte_seconds is None:
            self._record.passed_first_byte_seconds = self._hop.clock.now() - self._record.started_seconds
        fault = self._fault
        if fault is not None and fault.fault == "drop_after_bytes":
            left = max(0, fault.bytes - self._record.passed_bytes)
            if left < len(data):
                self._record.passed_bytes += left
                await self._write_client((self._reply_head if begun else b"") + self._framed(data[:left]))
                raise Cut("fault")
        self._record.passed_bytes += len(data)
        if fault is not None and fault.fault == "slow_drip":
            await self._drip(self._reply_head if begun else b"", data, fault.bytes_per_second)
        else:
            # One write: a head and its first bytes leave together.
            await self._write_client((self._reply_head if begun else b"") + self._framed(data))

    async def _drip(self, head: bytes, data: bytes, bytes_per_second: int) -> None:
        await self._write_client(head)
        for place in range(len(data)):
            await self._write_client(self._framed(data[place : place + 1]))
            await self._hop.clock.sleep(1 / bytes_per_second)

    def _framed(self, data: bytes) -> bytes:
        return chunk(data) if self._reply_chunked else data

    async def _end_reply(self) -> None:
        await self._begin_reply()
        if self._reply_chunked:
            await self._write_client(LAST_CHUNK)

    async def _write_client(self, data: bytes) -> None:
        self._client.write(data)
        await self._client.drain()
        self._raise_failure()

    async def _refuse(self, refusal: Refused) -> None:
        """Answer for the origin, if nothing has gone to the client yet."""
        if self._reply_begun or self._client.ended:
            self._keep = False
            self._cut()
            return
        hop, profile = self._hop, self._hop.profile
        occasion = pages.Occasion(
            status=refusal.status,
            code=refusal.code,
            cause=refusal.reason,
            host=self._passage.host,
            accept=self._head.headers.get("accept") or "",
            ray=self._passage.ray.partition("-")[0],
            client=self._passage.client,
            now=datetime.now(UTC),
            silent_seconds=self._silence.limit_seconds,
            marked=hop.marked,
        )
        page = pages.challenge(occasion) if refusal.reason == "challenge" else pages.make_page(profile.brand, occasion)
        head = ResponseHead(page.status, page.reason, "1.1", page.headers)
        change_response(profile, head.headers, self._passage)
        self._set_connection(head.headers)
        self._record.status = page.status
        self._reply_begun = True
        self._client.write(head.encode() + (b"" if self._head.method == "HEAD" else page.body))
        await self._client.drain()

    def _cut(self) -> None:
        """Break the client's connection off: without the body's end where its end is marked, else by a reset."""
        if self._reply_chunked and not self._client.ended:
            self._client.close()
        else:
            self._client.abort()

    async def _leave(self) -> None:
        """Let go of the origin, and of the upload's task."""
        if self._ack is not None:
            self._ack.cancel()
        if self._link is not None:
            self._link.wire.abort()
            self._link = None
        upload, self._upload = self._upload, None
        if upload is not None:
            upload.cancel()
            await asyncio.wait([upload])
            if not upload.cancelled():
                # Only a defect of ours gets out of it.
                upload.result()
