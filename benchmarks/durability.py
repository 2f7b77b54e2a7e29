"""What `OUTLAST_DURABILITY=disk` costs: appends and submits that wait for the disk, beside those that don't.

    python -m benchmarks.durability [--jobs 1 100] [--rate 10] [--seconds 3] [--rounds 3] [--folder .]

Two embedded Valkeys on the same disk, one with `appendfsync everysec` and one with `always`, take turns, so that what
else the machine does meets both. A worker's store appends to 1 and to 100 jobs: as fast as each answer lets it, which
says how many appends a second there can be, and then `--rate` a second for each job, which says how late an answer is
in ordinary work. Submits go one after the other, with what a gateway waits for under each setting.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from benchmarks.delivery import KIND
from gateway.embedded import EmbeddedValkey
from gateway.event_text import encode_event_tail
from gateway.requests import JobOptions
from gateway.store import Lease, NewJob, Store, WriterEvent

_EVENT = WriterEvent("log", encode_event_tail("log", {"level": "info", "message": "x" * 120}))
_SETTINGS: dict[str, Literal["redis", "disk"]] = {"everysec": "redis", "always": "disk"}


@dataclass
class Taken:
    """How long each call took, and how long all of them together."""

    each: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def note(self, began: float) -> None:
        """One call has come back."""
        self.each.append(time.perf_counter() - began)

    @property
    def per_second(self) -> float:
        """Calls in a second."""
        return len(self.each) / self.seconds

    def quantile(self, share: float) -> float:
        """Milliseconds within which so large a share came back."""
        return sorted(self.each)[int(share * (len(self.each) - 1))] * 1000


async def submit(store: Store) -> str:
    """A job; its id."""
    job = await store.job_id("local", None)
    await store.submit(job, NewJob(KIND, "local", {}, JobOptions(), "bench"), keyed=False)
    return job


async def begin(store: Store) -> Lease:
    """A job that runs."""
    await submit(store)
    [claim] = await store.claim(KIND.kind, "bench", 1)
    begun = await store.begin(claim, "bench")
    assert begun.lease is not None
    return begun.lease


async def append(jobs: int, seconds: float, rate: float | None, store: Store, taken: Taken) -> None:
    """Append to so many jobs at once, each as fast as the answers let it, or `rate` times a second."""
    leases = [await begin(store) for _ in range(jobs)]
    start = time.perf_counter()

    async def one(place: int, lease: Lease) -> None:
        batch = 1
        while time.perf_counter() < start + seconds:
            if rate is not None:
                await asyncio.sleep(max(0.0, start + (batch + place / jobs) / rate - time.perf_counter()))
            began = time.perf_counter()
            await store.append(lease, batch, [_EVENT])
            taken.note(began)
            batch += 1

    await asyncio.gather(*(one(place, lease) for place, lease in enumerate(leases)))
    taken.seconds += time.perf_counter() - start
    for lease in leases:
        await store.cancel(lease.job, "bench", "measured")


async def submit_one_by_one(seconds: float, store: Store, taken: Taken) -> None:
    """Submit for so long."""
    start = time.perf_counter()
    while time.perf_counter() < start + seconds:
        began = time.perf_counter()
        job = await submit(store)
        taken.note(began)
        await store.cancel(job, "bench", "measured")
    taken.seconds += time.perf_counter() - start


async def in_turns(stores: dict[str, Store], rounds: int, work: Callable[[Store, Taken], Awaitable[None]]) -> None:
    """Do the same with each setting, `rounds` times, and print how the two compare."""
    taken = {name: Taken() for name in stores}
    for number in range(rounds):
        for name in sorted(stores, reverse=bool(number % 2)):
            await work(stores[name], taken[name])
    for name, one in taken.items():
        half, most = one.quantile(0.5), one.quantile(0.99)
        print(f"    {name:9} {one.per_second:7.0f} a second  {half:7.2f} ms p50  {most:7.2f} ms p99")
    always, everysec = taken["always"], taken["everysec"]
    slower = [always.quantile(share) / everysec.quantile(share) for share in (0.5, 0.99)]
    rate = always.per_second / everysec.per_second
    print(f"    {'ratio':9} {rate:7.2f}           {slower[0]:7.1f}         {slower[1]:7.1f}")


def sync_alone(folder: Path) -> float:
    """The floor: milliseconds that a small write and its fdatasync take here, the median of 100."""
    times = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(100):
            began = time.perf_counter()
            file.write(b"x" * 256)
            file.flush()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


async def measure(args: argparse.Namespace, folder: Path) -> None:
    """Start the servers and compare them."""
    machine = f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores"
    print(f"{machine}, load {os.getloadavg()[0]:.1f}; a small write and its fdatasync {sync_alone(folder):.2f} ms")
    async with AsyncExitStack() as stack:
        stores = {}
        for policy, durability in _SETTINGS.items():
            valkey = EmbeddedValkey(folder / policy, memory_bytes=1 << 30, options={"appendfsync": policy})
            await stack.enter_async_context(valkey)
            store = await Store.connect(valkey.url, prefix="bench", lease_seconds=600, durability=durability)
            stack.push_async_callback(store.close)
            await store.register_kind(KIND)
            stores[policy] = store
        gc.freeze()
        for jobs in args.jobs:
            print(f"  appends to {jobs} at once, as fast as it goes")
            await in_turns(stores, args.rounds, partial(append, jobs, args.seconds, None))
            print(f"  appends to {jobs} at once, {args.rate:g} a second each")
            await in_turns(stores, args.rounds, partial(append, jobs, args.seconds, args.rate))
        print("  submits, one after the other")
        await in_turns(stores, args.rounds, partial(submit_one_by_one, args.seconds))


def main() -> None:
    """Measure in a folder of the disk that is asked about."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 100])
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path())
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder, prefix=".durability-") as folder:
        asyncio.run(measure(args, Path(folder).absolute()))


if __name__ == "__main__":
    main()
