"""A simulator of the hops in front of an origin: Cloudflare's edge and others, with their limits and habits.

It stands alone: aiohttp is not used, nothing of the gateway is but its errors, and nobody but the commands imports it.

Why an own relay instead of aiohttp's client and server: the rules are about what those hide. Each read from the origin
counts, also of half a head; a head is held back until there is a body byte; 102 and 103 pass; hop-by-hop fields, reason
phrases and framing are the hop's own; a connection is reset, closed half-way or reused at the wrong moment on purpose.
On asyncio's own protocols that is a thousand lines, and it costs less time than the two stacks would.

One request's way: `server` (a client's connection) -> `exchange` (one request) -> `origin` (connections to it), with
`message` for the bytes, `hold` for what is kept back, `brand` and `pages` for whose hop it is, `tunnel` for WebSockets.
"""

from gateway.edge.faults import Fault
from gateway.edge.metrics import Record
from gateway.edge.profile import Profile, load_profile, profile_names
from gateway.edge.server import Edge, chain

__all__ = ["Edge", "Fault", "Profile", "Record", "chain", "load_profile", "profile_names"]
