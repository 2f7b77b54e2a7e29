"""A worker's places: how many attempts it does at once, of each kind and together.

An attempt that waits for its steps steps aside, so that others, its own steps among them, can have its place; when it
comes back it goes before anything new. All of it belongs to the event loop.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from processors.processor import Processor

# Attempts that only wait for their steps take no place, but memory and a renewal each; beyond so many of one kind, a
# worker begins no more of it. Each kind has its own number, so that pipelines of pipelines can't wait for each other.
MAX_ASIDE: Final = 256


class Places:
    """The places of one worker: taken, lent while their attempt waits, and waited for by who comes back."""

    def __init__(
        self,
        processors: Mapping[str, Processor],
        concurrency: int,
        *,
        hangs: Callable[[str], bool] = lambda kind: False,
    ) -> None:
        self.made = asyncio.Event()
        """Set when a kind for which there was no room has some; whoever waits for it clears it first."""
        self._processors = processors
        self._concurrency = concurrency
        self._hangs = hangs
        self._taken: Counter[str] = Counter()
        self._aside: Counter[str] = Counter()
        self._returning: list[tuple[str, asyncio.Future[None]]] = []
        self._in_line: defaultdict[str, list[asyncio.Event]] = defaultdict(list)
        self._unwell: set[str] = set()

    def __repr__(self) -> str:
        return f"<places: {dict(+self._taken)} taken, {dict(+self._aside)} aside, {len(self._returning)} come back>"

    @property
    def free(self) -> int:
        """How many are free, whatever a kind's own limit says."""
        # All jobs of a kind that does batches share one place: they are one piece of work.
        batching = {kind for kind in self._taken if self._processors[kind].max_batch}
        taken = sum(min(1, count) if kind in batching else count for kind, count in self._taken.items())
        return self._concurrency - taken

    def room(self, kind: str) -> int:
        """How many more jobs of a kind could begin now."""
        if kind in self._unwell or self._hangs(kind) or self._aside[kind] >= MAX_ASIDE:
            return 0
        return self._free_for(kind)

    def set_well(self, kind: str, well: bool) -> None:
        """Whether jobs of a kind may begin; those that have begun go on."""
        if well:
            self._unwell.discard(kind)
            self.made.set()
        else:
            self._unwell.add(kind)

    def take(self, kind: str, count: int = 1) -> None:
        """Take places of a kind."""
        self._taken[kind] += count

    def give_up(self, kind: str, count: int = 1) -> None:
        """Give places back; who waits to come back gets them before anything new."""
        was_full = [other for other in self._processors if self.room(other) == 0]
        self._taken[kind] -= count
        for back in tuple(self._returning):
            of, returned = back
            if returned.done():
                self._returning.remove(back)
            elif self._free_for(of) > 0:
                self._returning.remove(back)
                self._taken[of] += 1
                returned.set_result(None)
        if self._processors[kind].max_batch or any(self.room(other) > 0 for other in was_full):
            self.made.set()

    def step_aside(self, kind: str) -> None:
        """Lend a place to others for as long as its attempt only waits."""
        self._aside[kind] += 1
        self.give_up(kind)

    async def come_back(self, kind: str) -> None:
        """Have a place again, as soon as one is free. It is had also if the wait is broken off."""
        if self._free_for(kind) > 0:
            self.come_back_at_once(kind)
            return
        self._came_back(kind)
        returned: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._returning.append((kind, returned))
        try:
            await returned
        except asyncio.CancelledError:
            if returned.cancelled():
                self._taken[kind] += 1
            raise

    def come_back_at_once(self, kind: str) -> None:
        """Have a place again, though all may be taken: an attempt that ends waits for nothing."""
        self._taken[kind] += 1
        self._came_back(kind)

    def leave_hand(self, kind: str) -> None:
        """Tell the first in line who has not been told yet that a job of this worker's is in hand no more."""
        for left in self._in_line[kind]:
            if not left.is_set():
                left.set()
                return

    @contextmanager
    def in_line(self, kind: str) -> Iterator[asyncio.Event]:
        """In line for a place under a kind's cap; the event says that there may be one. Clear it before asking."""
        left = asyncio.Event()
        self._in_line[kind].append(left)
        try:
            yield left
        finally:
            self._in_line[kind].remove(left)

    def _came_back(self, kind: str) -> None:
        self._aside[kind] -= 1
        self.made.set()

    def _free_for(self, kind: str) -> int:
        most = self._processors[kind].concurrency
        if max_batch := self._processors[kind].max_batch:
            # One batch that is being done, and one that gathers.
            taken = self._taken[kind]
            return max(0, (most or 2 * max_batch) - taken) if taken or self.free > 0 else 0
        return max(0, self.free if most is None else min(self.free, most - self._taken[kind]))
