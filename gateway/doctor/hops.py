"""The hops that a chain may have: how each gives itself away, and where its switches are. No I/O.

Limits and switches are those of the vendors' documentation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple


class Hop(NamedTuple):
    """A kind of proxy: its name, and the change for each thing that it can do to a stream."""

    title: str
    buffering: str
    websocket: str
    timeout: str
    body: str = "Raise its limit for request bodies, or send large files in parts."


UNKNOWN: Final = Hop(
    "a proxy",
    "Turn off response buffering for the stream's path in the proxy between the gateway and the client.",
    "Let the proxy between the gateway and the client pass `Upgrade` and `Connection` on.",
    "Raise the proxy's read time-out, or let the gateway speak sooner: OUTLAST_HEARTBEAT_SECONDS={heartbeat}.",
)
HOPS: Final[dict[str, Hop]] = {
    "cloudflare": Hop(
        "Cloudflare",
        "Add a Cloudflare Configuration Rule for the stream's path: Response Body Buffering = None.",
        "Switch WebSockets on: Cloudflare dashboard, Network > WebSockets.",
        "Set OUTLAST_HEARTBEAT_SECONDS={heartbeat}; Cloudflare's own limit can be raised on Enterprise plans only.",
        "Send files in parts below 95 MB; the plan's limit can't be raised by a setting.",
    ),
    "nginx": Hop(
        "nginx",
        "Set `proxy_buffering off;` in nginx's `location` of the gateway.",
        "In nginx's `location`: `proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade;"
        ' proxy_set_header Connection "upgrade";`.',
        "Set `proxy_read_timeout 3600s;` in nginx's `location` of the gateway.",
        "Set `client_max_body_size 100m;` in nginx's `location` of the gateway.",
    ),
    "haproxy": Hop(
        "HAProxy",
        "Set `option http-no-delay` in HAProxy's backend, and no `option http-buffer-request`.",
        "Set `timeout tunnel 1h` and no `option httpclose` in HAProxy's backend.",
        "Set `timeout server 1h` in HAProxy's backend.",
    ),
    "envoy": Hop(
        "Envoy",
        "Remove the buffer filter from the route in Envoy.",
        "Set `upgrade_configs: [{upgrade_type: websocket}]` on the route in Envoy.",
        "Set the route's `timeout: 0s` and `idle_timeout: 1h` in Envoy.",
    ),
    "caddy": Hop(
        "Caddy",
        "Set `flush_interval -1` in Caddy's `reverse_proxy`.",
        "Remove what strips `Upgrade` in front of Caddy: Caddy passes WebSockets on.",
        "Remove `read_timeout` from the transport of Caddy's `reverse_proxy`.",
        "Raise `request_body max_size` in Caddy.",
    ),
    "traefik": Hop(
        "Traefik",
        "Remove the buffering middleware from the router in Traefik.",
        "Remove the middleware that strips `Upgrade` from the router in Traefik.",
        "Raise `respondingTimeouts` of the entry point in Traefik.",
    ),
    "alb": Hop(
        "AWS ALB",
        "Let the target send without a `Content-Length`: ALB itself buffers nothing.",
        "Point the listener at a target group with HTTP/1.1: ALB passes WebSockets on.",
        "Raise the load balancer's attribute `idle_timeout.timeout_seconds` (60 by default).",
    ),
    "cloudfront": Hop(
        "CloudFront",
        "Use the cache policy CachingDisabled and no compression for the stream's path in CloudFront.",
        "Use the origin request policy AllViewer for the path in CloudFront: it passes `Sec-WebSocket-*` on.",
        "Raise the origin's response time-out in CloudFront (30 s by default).",
    ),
    "api-gateway": Hop(
        "AWS API Gateway",
        "Set the integration's `responseTransferMode` to STREAM (REST, Regional), or go around API Gateway.",
        "Use a WebSocket API, or let the clients use SSE: an HTTP or REST API upgrades nothing.",
        "Answer within 29 s: submit the job (202) and follow its events.",
        "Upload to a bucket: API Gateway takes at most 10 MB.",
    ),
    "google": Hop(
        "Google load balancer",
        "Switch Cloud CDN off for the stream's path.",
        "Raise the backend service's time-out: it is the lifetime of a WebSocket.",
        "Raise the backend service's `timeoutSec` (30 by default): it limits the whole answer.",
    ),
    "azure": Hop(
        "Azure Front Door",
        "Switch caching and compression off for the route in Azure Front Door.",
        "Use a tier of Azure Front Door that serves WebSockets for the route.",
        "Raise the origin response time-out in Azure Front Door (at most 240 s); App Service itself ends at 230 s.",
    ),
    "fastly": Hop(
        "Fastly",
        "Use streaming miss (`beresp.do_stream`) and `return(pass)` for the stream's path at Fastly.",
        "Enable WebSocket passthrough for the service at Fastly.",
        "Raise the backend's first byte and between bytes time-outs at Fastly.",
    ),
    "heroku": Hop(
        "Heroku",
        "Send the first byte at once: Heroku's router itself buffers nothing.",
        "Look at the dyno's server: Heroku's router passes WebSockets on.",
        "Set OUTLAST_HEARTBEAT_SECONDS={heartbeat}; Heroku's 30 s and 55 s can't be raised.",
    ),
    "vercel": Hop(
        "Vercel",
        "Call the gateway directly instead of through a rewrite on Vercel.",
        "Call the gateway directly: Vercel's functions upgrade nothing.",
        "Call the gateway directly: a function's time on Vercel is bounded.",
        "Upload to the gateway directly: a function on Vercel takes at most 4.5 MB.",
    ),
    "railway": Hop(
        "Railway",
        "Send text/event-stream: Railway never buffers it.",
        "Look at the service: Railway passes WebSockets on.",
        "Let the clients resume: Railway ends every request after 15 minutes.",
    ),
    "fly": Hop(
        "Fly.io",
        "Look at the app's own proxy: Fly.io streams.",
        "Set `handlers = ['http', 'tls']` for the port in fly.toml.",
        "Raise `http_options.idle_timeout` in fly.toml.",
    ),
    "netlify": Hop(
        "Netlify",
        "Call the gateway directly instead of through a redirect on Netlify.",
        "Call the gateway directly: Netlify upgrades nothing.",
        "Call the gateway directly: a function on Netlify ends after 60 s.",
    ),
    "render": Hop(
        "Render",
        "Look at the service: Render streams.",
        "Look at the service: Render passes WebSockets on.",
        "Let the clients resume: Render ends requests at a deploy.",
    ),
    "akamai": Hop(
        "Akamai",
        "Switch caching off and chunked streaming on for the path at Akamai.",
        "Enable the WebSockets behaviour for the path at Akamai.",
        "Raise the origin's read time-out at Akamai.",
    ),
}

# A header of an answer, and what its value looks like, where that matters.
_ANSWER_MARKS: Final = (
    ("cf-ray", "", "cloudflare"),
    ("server", r"^cloudflare", "cloudflare"),
    ("x-amz-cf-id", "", "cloudfront"),
    ("via", r"cloudfront", "cloudfront"),
    ("server", r"^cloudfront", "cloudfront"),
    ("x-vercel-id", "", "vercel"),
    ("fly-request-id", "", "fly"),
    ("x-railway-request-id", "", "railway"),
    ("x-railway-edge", "", "railway"),
    ("x-azure-ref", "", "azure"),
    ("x-nf-request-id", "", "netlify"),
    ("rndr-id", "", "render"),
    ("server", r"^akamai", "akamai"),
    ("x-served-by", r"^cache-", "fastly"),
    ("via", r"vegur", "heroku"),
    ("server", r"^(cowboy|heroku)", "heroku"),
    ("x-amz-apigw-id", "", "api-gateway"),
    ("apigw-requestid", "", "api-gateway"),
    ("x-amzn-requestid", "", "api-gateway"),
    ("server", r"^awselb", "alb"),
    ("via", r"\bgoogle\b", "google"),
    ("server", r"^google frontend", "google"),
    ("server", r"^(nginx|openresty|tengine)", "nginx"),
    ("server", r"^caddy", "caddy"),
    ("via", r"caddy", "caddy"),
    ("server", r"^(istio-)?envoy", "envoy"),
    ("x-envoy-upstream-service-time", "", "envoy"),
    ("server", r"^haproxy", "haproxy"),
)
# The same for a request as it arrived at the gateway: what came between names itself there.
_REQUEST_MARKS: Final = (
    ("cf-ray", "", "cloudflare"),
    ("cdn-loop", r"cloudflare", "cloudflare"),
    ("x-amz-cf-id", "", "cloudfront"),
    ("x-amzn-trace-id", "", "alb"),
    ("x-vercel-id", "", "vercel"),
    ("fly-client-ip", "", "fly"),
    ("x-railway-edge", "", "railway"),
    ("x-azure-fdid", "", "azure"),
    ("x-envoy-external-address", "", "envoy"),
    ("x-envoy-expected-rq-timeout-ms", "", "envoy"),
    ("x-cloud-trace-context", "", "google"),
    ("x-request-start", "", "heroku"),
    ("x-forwarded-server", "", "traefik"),
    ("fastly-client-ip", "", "fastly"),
    ("via", r"caddy", "caddy"),
    ("x-real-ip", "", "nginx"),
)


def hops_of_answer(headers: Iterable[tuple[str, str]]) -> list[str]:
    """The hops that an answer's headers name, the outermost guess first; empty where none does."""
    return _marked(headers, _ANSWER_MARKS)


def hops_of_request(headers: Iterable[tuple[str, str]]) -> list[str]:
    """The hops that a request's headers name, as it arrived at the gateway."""
    return _marked(headers, _REQUEST_MARKS)


def hop(names: Iterable[str]) -> Hop:
    """The hop whose switch is to be turned: the innermost that is known, since the outer ones got it from there."""
    known = [HOPS[name] for name in names if name in HOPS]
    return known[-1] if known else UNKNOWN


def _marked(headers: Iterable[tuple[str, str]], marks: tuple[tuple[str, str, str], ...]) -> list[str]:
    values: dict[str, str] = {}
    for name, value in headers:
        values[name.lower()] = value.lower()
    found = [hop for name, pattern, hop in marks if name in values and re.search(pattern, values[name])]
    return list(dict.fromkeys(found))
