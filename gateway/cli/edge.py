"""`outlast edge`: simulated hops in front of an origin, until Ctrl-C."""

from __future__ import annotations

import argparse
import sys
from typing import Any


def add_commands(subparsers: Any) -> None:
    """Add `edge` to `outlast`."""
    edge = subparsers.add_parser(
        "edge",
        help="put a simulated Cloudflare, nginx, ... in front of a server, to see what survives",
        description="Simulate one or more hops in front of an origin until Ctrl-C: their time-outs, buffering, headers"
        " and error pages. docs/edge.md tells what each profile does, and how sure that is.",
    )
    edge.add_argument("--origin", required=True, metavar="URL", help="the server behind it: http://127.0.0.1:8080")
    which = edge.add_mutually_exclusive_group()
    which.add_argument(
        "--profile", default="cloudflare", metavar="NAME", help="a name or a TOML file's path (default: cloudflare)"
    )
    which.add_argument("--chain", metavar="NAMES", help="several, separated by commas; the first is the clients'")
    edge.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (default: 127.0.0.1)"
    )
    edge.add_argument(
        "--port", type=int, default=8524, metavar="PORT", help="port to listen on (default: 8524; 0: a free one)"
    )
    edge.add_argument(
        "--time-scale", type=float, default=1.0, metavar="FACTOR", help="0.01 makes 125 s pass in 1.25 (default: 1)"
    )
    edge.add_argument("--seed", type=int, default=0, metavar="N", help="what is random is the same for the same seed")
    edge.add_argument("--unmarked", action="store_true", help="leave out what says that it is a simulation")
    edge.set_defaults(handler=_edge)


def _edge(args: argparse.Namespace) -> int:
    import asyncio

    return asyncio.run(_serve(args))


async def _serve(args: argparse.Namespace) -> int:
    import asyncio

    from gateway.edge import chain, load_profile
    from gateway.signals import on_stop_signals

    names = args.chain.split(",") if args.chain else [args.profile]
    profiles = [load_profile(name.strip()) for name in names]
    stopped = asyncio.Event()
    on_stop_signals(stopped.set)
    options = {"time_scale": args.time_scale, "seed": args.seed, "marked": not args.unmarked}
    async with chain(profiles, args.origin, host=args.host, port=args.port, **options) as hops:
        for hop in hops:
            print(f"{hop.url}  {hop.profile.title}")
        print(f"in front of {args.origin}; time passes {1 / args.time_scale:g} times as fast; stop with Ctrl-C")
        sys.stdout.flush()
        await stopped.wait()
    return 0
