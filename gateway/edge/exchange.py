"""One request through a hop: the head and body to the origin, the answer back, under the profile's rules.

Reading the origin is the main line; a request's body is sent by a task beside it, since an origin may answer before it
has all of it. Whatever ends the exchange early (a limit, the client's leaving, a restart) notes the reason and resets
the connection to the origin, which ends the main line's waiting.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from datetime import UTC, datetime

from gateway.edge import pages
from gateway.edge.brand import Passage, change_request, change_response, loops
from gateway.edge.clock import Clock, Silence
from gateway.edge.failures import Cut, Failure, Garbled, Refused
from gateway.edge.faults import STATUSES, Fault, Faults
from gateway.edge.hold import Coding, Hold, choose_coding, choose_hold
from gateway.edge.message import Body, Headers, RequestHead, ResponseHead, parse_response, response_framing, split_head
from gateway.edge.metrics import Metrics
from gateway.edge.origin import Link, Origin
from gateway.edge.profile import Profile
from gateway.edge.reply import Reply
from gateway.edge.tunnel import Moments, tunnel
from gateway.edge.upload import Upload
from gateway.edge.wire import Wire


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

    def mark(self, headers: Headers) -> None:
        """Say that this is a simulation, unless that is turned off."""
        if self.marked:
            headers.set("X-Simulated-Edge", self.profile.name)


class _Stale(Exception):
    """A used connection to the origin ended without a byte of an answer."""


class Exchange:
    """One request and its answer."""

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
        self._upload = Upload(client, body, hop.profile, hop.clock, self._record)
        self._reply = Reply(client, head, self._record, hop.clock, self._raise_failure)
        self._upgrade = head.upgrades and hop.profile.websocket.enabled and not self._upload.exists
        self._record.websocket = self._upgrade
        self._link: Link | None = None
        self._sending: asyncio.Task[None] | None = None
        self._sent = False
        self._acknowledgement: asyncio.TimerHandle | None = None
        self._failure: Failure | None = None

    async def run(self) -> bool:
        """Do it; returns whether the client's connection serves another request. Cancelling resets both connections."""
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
            self._reply.cut()
        finally:
            self._client.on_end = None
            if (last := self._silence.last) is not None:
                self._record.last_gap_seconds = self._hop.clock.now() - last
            await self._leave()
            self._upload.close()
            self._hop.metrics.end(self._record, how)
        return self._reply.keeps and not self._client.ended

    def fail(self, failure: Failure) -> None:
        """End it, for this reason unless there is an earlier one."""
        if self._failure is None:
            self._failure = failure
        if self._link is not None:
            self._link.wire.abort()

    def _client_left(self) -> None:
        self.fail(Cut("client_left"))

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _relay(self) -> str:
        self._check()
        fault = self._reply.fault = self._take_fault()
        if (self._head.headers.get("expect") or "").lower() == "100-continue" and self._upload.exists:
            self._client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._head.headers.drop("Expect")
        twice = fault is not None and fault.fault == "duplicate_request"
        await self._read_ahead(whole=twice)
        if twice:
            # A client that sends again what it got no answer for.
            await self._first_head()
            await self._leave()
        return await self._answer(await self._first_head())

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
        self._upload.check_length()

    def _take_fault(self) -> Fault | None:
        """The fault that waits for this request; raises it if it is an answer."""
        fault = self._hop.faults.take(self._head.method, self._head.target)
        if fault is not None and fault.fault == "challenge":
            raise Refused(403, "challenge")
        code = fault.fault.removesuffix("_now") if fault is not None else ""
        if code.isdecimal():
            raise Refused(STATUSES.get(code, int(code)), "fault", code=int(code))
        return fault

    async def _read_ahead(self, *, whole: bool) -> None:
        """Read of the request's body what has to be there before the origin is asked."""
        rules = self._hop.profile.request
        if not self._upload.exists:
            return
        # HTTP/1.0 has no way to send a body whose length is not known yet.
        if whole or rules.body_buffering == "full" or rules.origin_http == "1.0":
            await self._upload.save()
        elif rules.body_buffering == "standard" and rules.inspect_bytes:
            await self._upload.save(rules.inspect_bytes)

    # --- to the origin ----------------------------------------------------------------------------------------------

    async def _first_head(self) -> ResponseHead:
        """Ask, and wait for the answer's head; once more if a used connection had ended just then."""
        await self._ask()
        try:
            return await self._answer_head()
        except _Stale:
            if self._hop.profile.request.reuse_race or self._upload.exists:
                raise Refused(self._hop.profile.errors.garbled, "reuse_race") from None
        await self._leave()
        await self._ask(fresh=True)
        return await self._answer_head()

    async def _ask(self, *, fresh: bool = False) -> None:
        self._raise_failure()
        self._link = link = await self._hop.origin.link(fresh=fresh or self._upgrade)
        self._record.reused = link.reused
        self._raise_failure()
        link.wire.write(self._request_head().encode(self._hop.profile.request.origin_http))
        self._sent = False
        if self._upload.exists:
            self._sending = asyncio.create_task(self._send(link), name="an edge's upload")
        else:
            self._note_sent()

    def _request_head(self) -> RequestHead:
        """The head that the origin gets."""
        head = RequestHead(self._head.method, self._head.target, "1.1", Headers(self._head.headers.items))
        head.headers.drop_hop_by_hop()
        change_request(self._hop.profile, head.headers, self._passage)
        if self._upgrade:
            head.headers.set("Connection", "Upgrade")
            head.headers.set("Upgrade", "websocket")
            if not self._hop.profile.websocket.extensions:
                head.headers.drop("Sec-WebSocket-Extensions")
        self._upload.frame(head.headers)
        return head

    async def _send(self, link: Link) -> None:
        try:
            await self._upload.send(link.wire)
            self._note_sent()
        except Failure as failure:
            self.fail(failure)

    def _note_sent(self) -> None:
        """The request is on its way: from now on the origin's silence counts."""
        self._sent = True
        self._silence.break_()
        if seconds := self._hop.profile.timers.ack_seconds:
            when = self._hop.clock.when(self._hop.clock.now() + seconds)
            self._acknowledgement = asyncio.get_running_loop().call_at(when, self._check_acknowledged)

    def _check_acknowledged(self) -> None:
        if self._link is not None and self._record.origin_status is None and self._link.wire.unacknowledged():
            self.fail(Refused(self._hop.profile.errors.not_acknowledged, "not_acknowledged"))

    async def _leave(self) -> None:
        """Let go of the origin, and of the task that sends the body."""
        if self._acknowledgement is not None:
            self._acknowledgement.cancel()
        if self._link is not None:
            self._link.wire.abort()
            self._link = None
        sending, self._sending = self._sending, None
        if sending is not None:
            sending.cancel()
            await asyncio.wait([sending])
            if not sending.cancelled():
                # Only a defect of ours gets out of it.
                sending.result()

    # --- from the origin --------------------------------------------------------------------------------------------

    async def _read(self) -> bytes:
        """What the origin says next; raises what ends the waiting."""
        assert self._link is not None
        try:
            async with self._silence.watch():
                data = await self._link.wire.read()
        except TimeoutError:
            raise self._too_long() from None
        finally:
            self._silence.unwatch()
        self._raise_failure()
        if data and (last := self._silence.last) is not None:
            gap = self._hop.clock.now() - last
            self._record.largest_gap_seconds = max(self._record.largest_gap_seconds, gap)
        return data

    def _too_long(self) -> Failure:
        """What the end of patience looks like, by what the client has got."""
        errors = self._hop.profile.errors
        reason = "total_timeout" if self._silence.is_over else "read_timeout"
        if self._reply.begun:
            return Cut(reason)
        return Refused(errors.cut if self._silence.has_head else errors.silent, reason)

    def _count_read(self) -> None:
        if self._hop.profile.timers.counts == "read":
            self._count()

    def _count(self) -> None:
        """End the origin's silence, unless the request is still being sent: then it has not begun."""
        if self._sent:
            self._silence.break_()

    async def _answer_head(self) -> ResponseHead:
        """The final head; interim ones pass by the way. Raises `_Stale` where a used connection gave nothing."""
        rules, buffer = self._hop.profile.response, b""
        while True:
            before = self._silence.last
            head, buffer = await self._next_head(buffer)
            if not head.interim:
                assert self._link is not None
                self._link.wire.unread(buffer)
                return head
            if rules.interim != "reset" and before is not None:
                self._silence.break_(before)
            if rules.interim != "drop":
                self._reply.interim(head)

    async def _next_head(self, buffer: bytes) -> tuple[ResponseHead, bytes]:
        """The next head, and what came after it."""
        assert self._link is not None
        errors = self._hop.profile.errors
        while (parts := split_head(buffer)) is None:
            self._check_head(buffer)
            data = await self._read()
            if not data and self._link.reused and not buffer:
                raise _Stale
            if not data:
                raise Refused(errors.garbled, "empty_answer")
            # Each read counts, also of half a head.
            self._count_read()
            buffer += data
        self._check_head(parts[0])
        return parse_response(parts[0]), parts[1]

    def _check_head(self, head: bytes) -> None:
        if len(head) > self._hop.profile.request.max_head_bytes:
            raise Refused(self._hop.profile.errors.garbled, "head_too_large")

    async def _answer(self, head: ResponseHead) -> str:
        """Pass the origin's answer on; returns how it ended."""
        hop, rules = self._hop, self._hop.profile.response
        self._record.origin_status = head.status
        self._record.first_header_seconds = hop.clock.now() - self._record.started_seconds
        if head.status in rules.replaced_statuses:
            raise Refused(head.status, "replaced")
        if head.status == 101:
            return await self._tunnel(head)
        framing, length = response_framing(head, self._head.method)
        reusable = head.keeps_alive and hop.profile.request.origin_http == "1.1"
        head.headers.drop_hop_by_hop()
        hold = choose_hold(rules, self._head.method, head)
        coding = choose_coding(rules, self._accepted_codings(), head) if framing != "none" else None
        change_response(hop.profile, head.headers, self._passage)
        hop.mark(head.headers)
        self._reply.prepare(head, framing, request_is_read=self._upload.is_read)
        if hop.profile.timers.counts == "read":
            self._silence.has_head = True
        if framing == "none" or not rules.hold_head:
            await self._reply.begin()
        body = Body(framing, length)
        whole = await self._pass_body(body, hold, coding)
        if not whole and not self._reply.begun and not hold.held:
            raise Refused(hop.profile.errors.garbled, "origin_closed")
        await self._pass(hold.end(), coding, last=whole)
        if not whole:
            raise Cut("origin_closed")
        await self._reply.end()
        if reusable and not body.leftover and self._sent and self._link is not None:
            link, self._link = self._link, None
            hop.origin.give_back(link)
        return "complete"

    async def _pass_body(self, body: Body, hold: Hold, coding: Coding | None) -> bool:
        """Pass the body on; returns whether it came whole."""
        while not body.complete:
            data = await self._read()
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

    async def _pass(self, data: bytes, coding: Coding | None, *, last: bool = False) -> None:
        if coding is not None:
            data = (coding.feed(data) if data else b"") + (coding.end() if last else b"")
        if data:
            self._silence.has_head = True
        await self._reply.pass_on(data)

    def _accepted_codings(self) -> set[str]:
        parts = (part.replace(" ", "") for part in self._head.headers.tokens("accept-encoding"))
        return {part.partition(";")[0] for part in parts if not part.endswith((";q=0", ";q=0.0"))}

    async def _tunnel(self, head: ResponseHead) -> str:
        """Be a tunnel for an upgraded connection until it ends."""
        if not self._upgrade or self._link is None:
            raise Garbled("an upgrade that nobody asked for")
        hop, rules = self._hop, self._hop.profile.websocket
        head.headers.drop_hop_by_hop()
        change_response(hop.profile, head.headers, self._passage)
        hop.mark(head.headers)
        head.headers.set("Connection", "Upgrade")
        head.headers.set("Upgrade", "websocket")
        self._record.status = 101
        self._reply.begun = True
        self._reply.keeps = False
        self._client.write(head.encode())
        idle = rules.idle_seconds
        if rules.idle_most_seconds > idle:
            idle = hop.random.uniform(idle, rules.idle_most_seconds)
        # The tunnel itself sees when the client leaves.
        self._client.on_end = None
        how = await tunnel(
            self._client, self._link.wire, Moments(hop.clock, idle, hop.profile.timers.total_seconds), self._record
        )
        self._raise_failure()
        # Both sides have been closed, and may still be sending their last bytes.
        self._link = None
        return how

    async def _refuse(self, refusal: Refused) -> None:
        """Answer for the origin, if nothing has gone to the client yet."""
        if self._reply.begun or self._client.ended:
            self._reply.cut()
            return
        hop = self._hop
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
        brand = hop.profile.brand
        page = pages.challenge(occasion) if refusal.reason == "challenge" else pages.make_page(brand, occasion)
        head = ResponseHead(page.status, page.reason, "1.1", page.headers)
        change_response(hop.profile, head.headers, self._passage)
        hop.mark(head.headers)
        self._reply.prepare(head, "none", request_is_read=self._upload.is_read)
        self._reply.begun = True
        self._client.write(head.encode() + (b"" if self._head.method == "HEAD" else page.body))
        await self._client.drain()
