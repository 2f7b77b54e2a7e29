"""Every verdict that the doctor can reach, in one table: what it is, where to look, the one change, and why. No I/O.

The order of `Cause` is the order in which causes hide one another: who can't find the host learns nothing about
buffering. Of several findings the first in this order is the one to act on.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Final, NamedTuple


class Place(StrEnum):
    """Where the cause is."""

    ACCOUNT = "account or auth"
    QUOTA = "quota or rate"
    PROVIDER = "model or provider"
    RUNTIME = "local runtime"
    DEPLOYMENT = "deployment or proxy configuration"
    CLIENT = "the client itself"


class Cause(IntEnum):
    """What kind of cause, in the order in which they hide one another."""

    ORIGIN = 0
    NAME = 1
    CONNECTION = 2
    GATE = 3
    ACCESS = 4
    UPGRADE = 5
    BUFFERING = 6
    COMPRESSION = 7
    IDLE = 8
    TOTAL = 9
    SIZE = 10
    STATUS = 11
    REPEAT = 12


class Verdict(NamedTuple):
    """One row: texts may hold `{values}` of the finding."""

    cause: Cause
    place: Place
    title: str
    change: str
    why: str
    note: bool = False
    """Worth knowing and nothing to act on: a chain with notes only is healthy."""


_HELD: Final = (
    "Put Outlast before the slow route: name it in a file and start `outlast up --routes FILE`; client and server stay"
    " as they are."
)
_JOBS: Final = "Submit the work as a job (`POST /v1/kinds/KIND/jobs`: 202 at once) and follow its events."
_D: Final = Place.DEPLOYMENT

VERDICTS: Final[dict[str, Verdict]] = {
    # --- what an error says of itself ---
    "edge_read_timeout": Verdict(
        Cause.IDLE, _D, "Cloudflare's own 524: the origin was silent for too long",
        _HELD,
        "Cloudflare waits about 125 s (100 s before October 2025) for a byte of the origin, and any byte starts the"
        " time anew; Outlast sends one every 15 s, and keeps the result, which the 524 lost. With a change of the code"
        " the work can be a job that shows its progress (`POST /v1/kinds/KIND/jobs`).",
    ),
    "edge_write_timeout": Verdict(
        Cause.SIZE, _D, "Cloudflare's 524 in an upload: sending to the origin stalled for 30 s",
        "Send the file in parts (`POST /v1/uploads`), or let the origin read bodies as they come.",
        "This is the write time-out: 30 s on every plan, no setting changes it. It has nothing to do with the 125 s.",
    ),
    "relayed_timeout": Verdict(
        Cause.IDLE, Place.PROVIDER, "A 524 of {owner}'s edge, passed on: not yours",
        "Call {owner} with streaming, or in its background mode, so that its own edge hears a byte in time.",
        "The error names another zone than {host}, or comes without Cloudflare's marks around a provider's error. No"
        " setting of your own edge changes it.",
    ),
    "imitated_timeout": Verdict(
        Cause.IDLE, _D, "A 524 that Cloudflare did not make",
        "Look at what answers for {host} itself: its log has this request with status 524.",
        "None of Cloudflare's marks is on it (no CF-RAY, no cf-error headers, no page of its own), so an application"
        " or another proxy chose this status.",
    ),
    "bad_gateway": Verdict(
        Cause.ORIGIN, _D, "502 or 504 of the origin, in the edge's clothes",
        "Look into the origin's own log at the time of this request; in front of it the usual limit of {seconds} s is"
        " that of {hop}.",
        "The edge got this status from the origin's side and put its own page in the place of the body.",
    ),
    "body_replaced": Verdict(
        Cause.STATUS, _D, "A 502 or 504 whose body the edge threw away",
        "Answer 500 or 503 in the place of 502 and 504.",
        "Cloudflare replaces the bodies of 502 and 504 by its own; 500 and 503 pass through whole.",
    ),
    "held_then_cut": Verdict(
        Cause.IDLE, _D, "502 after about 125 s on a stream: headers were sent, and no body byte",
        "Send a first comment (`: ok`) right after the headers, then a heartbeat every 15 s.",
        "The edge holds the headers until a body byte comes; the origin's log shows 200 and the client sees nothing"
        " until the cut.",
    ),
    "nginx_timeout": Verdict(
        Cause.IDLE, _D, "504 of nginx: its upstream was silent",
        "Set `proxy_read_timeout 3600s;` in nginx's `location`.",
        "nginx waits 60 s by default between two reads of its upstream. Where it can't be changed, Outlast before the"
        " slow route (`outlast up --routes FILE`) sends a byte every 15 s.",
    ),
    "proxy_timeout": Verdict(
        Cause.IDLE, _D, "504 of {hop}: what is behind it was silent",
        "{timeout}",
        "The page is that of {hop}, so its limit ended this request, and not the one of a hop further out.",
    ),
    "heroku_timeout": Verdict(
        Cause.IDLE, _D, "Heroku's H12 or H15: no byte within 30 s, or a silence of 55 s",
        _HELD,
        "Heroku's router ends a request without a first byte after 30 s; this can't be raised. Outlast sends the first"
        " byte after 20 s. With a change of the code the work can be a job that shows its progress.",
    ),
    "gateway_api_timeout": Verdict(
        Cause.TOTAL, _D, "AWS API Gateway ended the request at 29 or 30 s",
        _JOBS,
        "An integration has 29 s for its whole answer (30 s in an HTTP API).",
    ),
    "origin_overloaded": Verdict(
        Cause.ORIGIN, Place.RUNTIME, "503 of the application itself",
        "Wait for `Retry-After`, and give the application more room: workers, memory, connections.",
        "The body is the application's own, which an edge passes on unchanged.",
    ),
    "origin_closed": Verdict(
        Cause.ORIGIN, _D, "520: the origin closed, or sent what is no answer",
        "Keep idle connections open for longer than 900 s at the origin (aiohttp's default of 3630 s is long enough).",
        "Cloudflare reuses a connection for 900 s; an origin that closes it earlier now and then closes it under a"
        " request. Otherwise the origin crashed, or its headers are over 128 KB.",
    ),
    "origin_refused": Verdict(
        Cause.CONNECTION, _D, "521: the origin refuses connections",
        "Start the origin's server, on the port that the edge uses, and let Cloudflare's addresses in.",
        "The edge got a refusal: nothing listens there, or a firewall rejects it.",
    ),
    "origin_unanswered": Verdict(
        Cause.CONNECTION, _D, "522: the origin does not answer connections",
        "Let Cloudflare's address ranges through the origin's firewall, and check the DNS record's address.",
        "No answer came to the edge's SYN within 19 s, or no ACK to the request within 90 s: packets are dropped.",
    ),
    "origin_unroutable": Verdict(
        Cause.CONNECTION, _D, "523: there is no way to the origin's address",
        "Mend the address in the DNS record of {host}.",
        "The edge has no route to the address that the record names.",
    ),
    "edge_tls_failed": Verdict(
        Cause.CONNECTION, _D, "525: the TLS handshake with the origin failed",
        "Install a certificate for {host} at the origin, or set the edge's SSL mode to what the origin speaks.",
        "The edge speaks TLS to the origin, and the two have no version, cipher or name in common.",
    ),
    "edge_certificate": Verdict(
        Cause.CONNECTION, _D, "526: the origin's certificate is not valid",
        "Renew the origin's certificate, or install one that the edge's Origin CA has issued.",
        "In the mode Full (strict) the edge takes valid certificates only.",
    ),
    "tunnel_down": Verdict(
        Cause.CONNECTION, _D, "530 with 1033: no cloudflared is connected",
        "Start `cloudflared` for this tunnel, and keep it running as a service.",
        "The name leads to a tunnel, and nobody is at its other end.",
    ),
    "edge_dns": Verdict(
        Cause.NAME, _D, "530 with 1016: the edge can't find the origin's name",
        "Mend the origin's host name in the DNS record (or the tunnel's CNAME) of {host}.",
        "The record of {host} leads to a name that does not resolve.",
    ),
    "challenge": Verdict(
        Cause.GATE, _D, "The edge challenges the client: WAF or bot rule",
        "Add a WAF skip rule for {path} (and for WebSockets: no Bot Fight Mode).",
        "The answer has `cf-mitigated: challenge`. A program can't solve a challenge; this is no time-out.",
    ),
    "edge_blocked": Verdict(
        Cause.GATE, _D, "The edge blocks the client by a rule",
        "Find the rule by the ray id under Security > Events and except {path} from it.",
        "The answer is Cloudflare's error 1020, 1006, 1010 or alike: a rule of the zone matched.",
    ),
    "edge_rate": Verdict(
        Cause.GATE, Place.QUOTA, "The edge's rate limit",
        "Raise the rate limiting rule for {path}, or poll less: follow one stream.",
        "Error 1015, or a 429 of the edge: a rule of the zone counted too many requests.",
    ),
    "body_over_edge": Verdict(
        Cause.SIZE, _D, "413 of the edge: the body is over the plan's limit",
        "Send the file in parts below 95 MB (`POST /v1/uploads`), or by URL.",
        "Cloudflare takes 100 MB on Free and Pro, 200 MB on Business, 500 MB on Enterprise.",
    ),
    "body_over_proxy": Verdict(
        Cause.SIZE, _D, "413 of a proxy: the body is over its limit",
        "Set `client_max_body_size 100m;` in nginx's `location` (its default is 1 MB).",
        "The page is a proxy's, neither the edge's nor the application's.",
    ),
    "body_over_app": Verdict(
        Cause.SIZE, _D, "413 of the application itself",
        "Raise OUTLAST_MAX_UPLOAD_BYTES (another aiohttp application: `client_max_size`, 1 MiB by default).",
        "The body is the application's own.",
    ),
    "client_left": Verdict(
        Cause.IDLE, Place.CLIENT, "The client gave up first (499, or its own time-out)",
        "Set the client's read time-out to None, or above the server's; then look who is next.",
        "Nobody in the chain ended it: .NET waits 100 s by default, undici 300 s, many agents 15 to 60 s.",
    ),
    "cut_in_silence": Verdict(
        Cause.IDLE, _D, "A stream was cut after a silence of {seconds} s",
        "Set OUTLAST_HEARTBEAT_SECONDS={heartbeat}.",
        "The answer had begun and then nothing came for that long: somebody's idle limit. A heartbeat at a third of it"
        " never meets it.",
    ),
    "cut_at_age": Verdict(
        Cause.TOTAL, _D, "A stream was cut at an age of {seconds} s, in the middle of data",
        "Let the client resume with its last event id; nothing is to be configured.",
        "It was not silent, so it is a limit on the whole (Google's load balancer 30 s, Cloud Run 300 s, API Gateway"
        " and Railway 15 min) or a restart of a hop.",
    ),
    "broke_off": Verdict(
        Cause.TOTAL, _D, "The connection broke off in the middle of an exchange",
        "Find out after how long, and by whom: give the request itself, as a curl command, with --rerun. Until then let"
        " the client come back with its last event id, or send the file in parts.",
        "A hop closed it without a page: a silence or an upload that it did not wait for, a limit on the whole, a body"
        " that it refused, or a restart. The text alone does not say which.",
    ),
    "unauthorized": Verdict(
        Cause.ACCESS, Place.ACCOUNT, "The credentials are missing or not good",
        "Send the right key for {host}; an expired one is made anew.",
        "401 or 403 of the application: a key, an account or its rights, not the chain.",
    ),
    "quota": Verdict(
        Cause.ACCESS, Place.QUOTA, "A quota or rate limit of {owner}",
        "Wait for `Retry-After`, or raise the quota at {owner}.",
        "429, or an error text about quota, credit or rate: the chain carried it faithfully.",
    ),
    "provider_overloaded": Verdict(
        Cause.ACCESS, Place.PROVIDER, "The model or its provider is overloaded",
        "Try again with growing pauses and the same Idempotency-Key.",
        "The provider says so itself (529, `overloaded`, `engine overloaded`).",
    ),
    "model_unknown": Verdict(
        Cause.ACCESS, Place.PROVIDER, "The provider does not know this model, or not for this account",
        "Use a model that the provider lists for this account.",
        "The error names the model, not the way to it.",
    ),
    "out_of_memory": Verdict(
        Cause.ORIGIN, Place.RUNTIME, "The local runtime is out of memory, or was killed",
        "Give the worker more memory, or make the batch, the image or the context smaller.",
        "`CUDA out of memory`, exit 137 or the kernel's OOM killer: nothing in between did it.",
    ),
    "local_runtime_down": Verdict(
        Cause.ORIGIN, Place.RUNTIME, "A program on the same machine is not running",
        "Start what listens at {host}.",
        "The connection to a local address was refused.",
    ),
    "not_found": Verdict(
        Cause.ACCESS, _D, "There is nothing at this address",
        "Check the path; the gateway lists its routes at /docs.",
        "404 came from behind the edge, so the chain works as far as that.",
    ),
    "application_error": Verdict(
        Cause.ORIGIN, Place.RUNTIME, "500 of the application itself",
        "Find this request in the application's log.",
        "An edge passes a 500 on unchanged: it is a defect of the application.",
    ),
    # --- what a connection says ---
    "no_name": Verdict(
        Cause.NAME, _D, "The name {host} does not resolve",
        "Add the DNS record for {host}, or mend the address.",
        "No address is known for it, so nothing further can be seen.",
    ),
    "refused": Verdict(
        Cause.CONNECTION, _D, "{host} refuses connections",
        "Start what listens there, or mend the port in the address.",
        "The machine answers, and nothing listens on this port.",
    ),
    "unreachable": Verdict(
        Cause.CONNECTION, _D, "{host} does not answer connections",
        "Let this machine through the firewall in front of {host}, or mend the address.",
        "No answer came to the attempt to connect.",
    ),
    "tls": Verdict(
        Cause.CONNECTION, _D, "The TLS handshake with {host} fails",
        "Install a valid certificate for {host}.",
        "What the server shows can't be trusted, or it speaks no TLS on this port.",
    ),
    "garbled": Verdict(
        Cause.CONNECTION, _D, "What answers at {host} is no HTTP/1.1",
        "Mend the scheme or the port in the address.",
        "The first bytes are those of another protocol.",
    ),
    "closed_unanswered": Verdict(
        Cause.CONNECTION, _D, "{host} closed the connection without an answer",
        "Look into the log of {hop} at the time of this request.",
        "It took the request and closed: a crash, a restart, or a limit without a page.",
    ),
    # --- what was measured ---
    "origin_late": Verdict(
        Cause.ORIGIN, Place.RUNTIME, "The stream is late at the origin itself",
        "Mend the application: write the first byte at once and flush every frame; then measure again.",
        "Frames that were sent one by one came late without anything in between, so no setting of a proxy can help.",
    ),
    "origin_silent": Verdict(
        Cause.ORIGIN, Place.RUNTIME, "The origin itself sends nothing for {seconds} s",
        _HELD,
        "Every hop in front of it counts this silence, whatever it is set to. An application that can be changed may"
        " send a first byte at once and a heartbeat every 15 s itself.",
    ),
    "origin_down": Verdict(
        Cause.ORIGIN, Place.RUNTIME, "The origin does not answer at all",
        "Start the application, or mend the address given with --origin.",
        "Without it nothing in front of it can work.",
    ),
    "probe_token": Verdict(
        Cause.ACCESS, Place.ACCOUNT, "The probe token is not the gateway's",
        "Give the gateway's OUTLAST_PROBE_TOKEN to this command (the same variable, or --token).",
        "The gateway has its probe routes on, and refused this token.",
    ),
    "headers_stripped": Verdict(
        Cause.GATE, _D, "Request headers are lost on the way: {headers}",
        "Let {hop} pass {headers} on.",
        "Without Last-Event-ID no stream resumes, without Idempotency-Key a retry pays twice.",
    ),
    "answers_cached": Verdict(
        Cause.GATE, _D, "Answers come from a cache",
        "Bypass the cache for {path} at {hop}.",
        "Two requests got the same answer, although each is made anew and marked `no-store`.",
    ),
    "upgrade_stripped": Verdict(
        Cause.UPGRADE, _D, "WebSocket upgrades are lost on the way",
        "{websocket}",
        "The gateway saw a plain GET: a hop dropped the `Upgrade` header. {fallback}",
    ),
    "upgrade_refused": Verdict(
        Cause.UPGRADE, _D, "A hop refuses WebSocket upgrades with {status}",
        "{websocket}",
        "The answer is not the gateway's, so it never heard of the upgrade.",
    ),
    "socket_mute": Verdict(
        Cause.UPGRADE, _D, "The WebSocket opens, and nothing comes through",
        "{websocket}",
        "101 came back, and then neither the gateway's hello nor an echo: a hop answered the handshake by itself.",
    ),
    "socket_closed": Verdict(
        Cause.UPGRADE, _D, "The WebSocket is closed after {seconds} s",
        "{websocket}",
        "It had been opened, and the gateway did not close it.",
    ),
    "socket_altered": Verdict(
        Cause.UPGRADE, _D, "A frame of 64 KB does not come back over the WebSocket as it was sent",
        "Raise the largest frame that {hop} takes to 64 KB or more.",
        "Small frames pass and a large one does not.",
    ),
    "socket_idle": Verdict(
        Cause.IDLE, _D, "An idle WebSocket is cut after {seconds} s",
        "Set OUTLAST_HEARTBEAT_SECONDS={heartbeat}.",
        "Without a ping in between, a hop closes it.",
    ),
    "all_held": Verdict(
        Cause.BUFFERING, _D, "Streams are held back until they end",
        "{buffering}",
        "At the origin frames go out one by one, here all of them came at the end. Heartbeats don't help against a hop"
        " that keeps them.",
    ),
    "get_held": Verdict(
        Cause.BUFFERING, _D, "Streams over GET are held back, over POST they are not",
        "Use a named tunnel in the place of the quick one (trycloudflare.com); until then submit with"
        " `Accept: text/event-stream` (POST) or use the WebSocket.",
        "Quick tunnels hold GET streams on purpose.",
    ),
    "post_held": Verdict(
        Cause.BUFFERING, _D, "Streams over POST are held back, over GET they are not",
        "Submit first and follow the job's events over GET; {buffering}",
        "A hop treats answers to POST as something to be read whole.",
    ),
    "only_sse": Verdict(
        Cause.BUFFERING, _D, "Only text/event-stream passes; other streams are held back",
        "Upgrade cloudflared to 2025.4.2 or newer (another proxy: turn off response buffering).",
        "Older versions hold back whatever is neither SSE nor gRPC; until then use SSE.",
    ),
    "json_held": Verdict(
        Cause.BUFFERING, _D, "JSON that comes piece by piece is held back, other streams are not",
        "Turn off what inspects or rewrites JSON bodies for {path} at {hop}.",
        "A held request (`/run`, whitespace before the answer) can't live through this hop; SSE can.",
    ),
    "http2_held": Verdict(
        Cause.BUFFERING, _D, "Streams are held back over HTTP/2, over HTTP/1.1 they are not",
        "Switch HTTP/2 off for clients at {hop}, or what it does to answers over HTTP/2 only.",
        "Browsers speak HTTP/2 where they can, and curl and most libraries don't: that is why only pages show it.",
    ),
    "some_held": Verdict(
        Cause.BUFFERING, _D, "Some streams are held back: {cells}",
        "{buffering}",
        "The others pass, so it is a rule for these and not the line.",
    ),
    "first_held": Verdict(
        Cause.BUFFERING, _D, "The first frame is held back until the second one comes",
        "Send two frames at once at the start, as the gateway's own streams do.",
        "A hop inspects the first bytes of an answer before it lets them go.",
    ),
    "one_behind": Verdict(
        Cause.BUFFERING, _D, "Each frame is held back until the next one comes",
        "Except {host} from the antivirus program's or firewall's web scan on this machine or network.",
        "This is the pattern of a scanner on the client's side, which no setting of the server's side changes.",
    ),
    "batched": Verdict(
        Cause.BUFFERING, _D, "Frames come in heaps",
        "{buffering}",
        "A hop passes a stream on when a buffer is full or a timer fires: slower than a heartbeat it would be a cut.",
    ),
    "compressed_held": Verdict(
        Cause.COMPRESSION, _D, "Streams are held back for clients that take gzip",
        "Switch compression off for {path} at {hop}: it ignores `Cache-Control: no-transform`.",
        "A compressor collects before it writes. Without gzip in Accept-Encoding the same streams pass.",
    ),
    "compressed_stream": Verdict(
        Cause.COMPRESSION, _D, "A stream is compressed on the way",
        "Let {hop} obey `Cache-Control: no-transform`.",
        "It came in time in this measurement; a compressor that does not flush each frame holds them back.",
        note=True,
    ),
    "stream_cut": Verdict(
        Cause.TOTAL, _D, "A stream breaks off after {seconds} s although frames were coming",
        "Find what ends an answer at {seconds} s or {size} bytes at {hop}.",
        "Every client has to resume at once and again; nothing was silent.",
    ),
    "stream_altered": Verdict(
        Cause.STATUS, _D, "Frames of a stream are missing, doubled or changed",
        "Switch off what rewrites bodies for {path} at {hop}.",
        "What the gateway sent is not what came.",
    ),
    "stream_replaced": Verdict(
        Cause.STATUS, _D, "In the place of a stream came another answer ({status})",
        "Look at what {hop} does with {cells}.",
        "Other streams pass, so it is a rule for these.",
    ),
    "uneven": Verdict(
        Cause.BUFFERING, _D, "Frames come unevenly, up to {seconds} s late",
        "Look at the line between this machine and {host}: the delay is below what a proxy's buffer would make.",
        "No pattern of a buffer, and twice the same: a slow or lossy line, or an overloaded hop.",
    ),
    "errors_rewritten": Verdict(
        Cause.STATUS, _D, "The bodies of errors are replaced on the way: {statuses}",
        "Let {hop} pass the bodies of errors on (nginx: no `proxy_intercept_errors`).",
        "Clients read the `code` in the problem document, and now they see a page.",
    ),
    "requests_repeated": Verdict(
        Cause.REPEAT, _D, "A request that was sent once arrives {visits} times",
        "Switch off the retry of POST requests at {hop}, and send an Idempotency-Key with every submit.",
        "Each repetition is a job that runs and bills again.",
    ),
    "uploads_refused": Verdict(
        Cause.SIZE, _D, "Request bodies of {limit} are refused on the way",
        "{body}",
        "The answer is not the gateway's: a hop has a lower limit than the gateway.",
    ),
    "upload_failed": Verdict(
        Cause.SIZE, _D, "An upload does not arrive whole",
        "Look at what {hop} does with request bodies: {detail}.",
        "The gateway did not see the bytes that were sent.",
    ),
    "silence_cut": Verdict(
        Cause.IDLE, _D, "The chain ends a silence of {seconds} s",
        "{timeout}",
        "This is too near to the heartbeat, or below it: OUTLAST_HEARTBEAT_SECONDS is to be a third of the limit.",
    ),
    "worse_than_baseline": Verdict(
        Cause.STATUS, _D, "Something changed since the baseline: {what}",
        "Undo or follow the change in {what}: it was {before}, and now it is {after}.",
        "The same measurement gave another result in the saved run.",
    ),
    "differs": Verdict(
        Cause.STATUS, _D, "The working environment differs in: {what}",
        "Make {what} the same: it is {before} where it works, and {after} here.",
        "It is the first difference in the order in which causes hide one another.",
    ),
    # --- notes: worth knowing, nothing to act on ---
    "headers_held": Verdict(
        Cause.BUFFERING, _D, "Headers come only with the first body byte",
        "Send a first byte right after the headers, as the gateway's own streams do.",
        "Normal behind Cloudflare.",
        note=True,
    ),
    "gateway_errors_replaced": Verdict(
        Cause.STATUS, _D, "The bodies of {statuses} are replaced on the way",
        "Answer 500 or 503 in their place, as the gateway does.",
        "Normal behind Cloudflare.",
        note=True,
    ),
    "interim_dropped": Verdict(
        Cause.STATUS, _D, "Interim answers (103) don't pass",
        "Nothing here depends on them.",
        "Normal for many proxies; 102 keeps no request alive either.",
        note=True,
    ),
    "body_limit": Verdict(
        Cause.SIZE, _D, "Bodies of {limit} are refused before the gateway",
        "Send larger files in parts (`POST /v1/uploads`).",
        "An edge's usual limit.",
        note=True,
    ),
    "socket_idle_limit": Verdict(
        Cause.IDLE, _D, "An idle WebSocket is ended after {seconds} s",
        "The gateway's ping every 15 s is far below it.",
        "Normal behind Cloudflare and load balancers.",
        note=True,
    ),
    "silence_limit": Verdict(
        Cause.IDLE, _D, "A silence of {seconds} s is ended by the chain",
        "The heartbeat of 15 s is far below it.",
        "Every proxy has such a limit; synchronous routes die by it.",
        note=True,
    ),
}  # fmt: skip
