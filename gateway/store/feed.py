"""The live feed: one subscribing connection per master for the whole process.

Redis-py's own reader gives up after about 4 s without a server, and loses messages silently when it reconnects.
Pub/sub is only the fast path here: after every new subscription each follower is told to read the log again, which is
the truth.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any, Final, Protocol

import hiredis
from redis.crc import key_slot

from gateway.errors import Unavailable
from gateway.store.clients import Identity
from gateway.store.deployment import Address
from gateway.store.scripts import Keys
from gateway.store.topology import Topology
from gateway.store.wire import Wire, kept

logger = logging.getLogger(__name__)

# A quiet connection is asked for a sign of life; one that gives none is dead, whatever TCP says.
_PING_SECONDS: Final = 5.0
_SILENCE_SECONDS: Final = 12.0
# A channel that its master sent elsewhere is subscribed to again after this, if nobody has found its new master sooner.
_HOMELESS_SECONDS: Final = 1.0
# A subscription is confirmed in milliseconds where the connection stands.
_CONFIRM_SECONDS: Final = 5.0


class Follower(Protocol):
    """Who hears a job's live channel. Both methods are called from the event loop and must not block."""

    def on_message(self, payload: bytes) -> None:
        """One message: lines `N-T type text`, or `seen ms worker`."""

    def on_gap(self) -> None:
        """Messages may have been lost: read the log again."""


@dataclass(slots=True, eq=False)
class _Following:
    followers: tuple[Follower, ...]
    confirmed: asyncio.Future[None]
    """Done since the first subscription."""
    overdue: bool = False
    """Whether somebody waited for that in vain, and so has missed what was published until then."""
    reader: _Reader | None = None
    """Where it is subscribed, or will be once that connection stands."""


class Feed:
    """Follows the live channels of the jobs that this process serves, and no others."""

    def __init__(self, topology: Topology, keys: Keys, identity: Identity) -> None:
        self.topology = topology
        self.identity = identity
        self._keys = keys
        self.followings: dict[bytes, _Following] = {}
        self._readers: dict[Address, _Reader] = {}
        self._changed = asyncio.Event()
        self._homeless = False
        self.connects = 0
        """How many connections it has opened: a new one may have led to a new server."""
        self.reconnects = 0
        """How many of them had followers waiting."""
        topology.on_change.append(self._changed.set)

    @property
    def connected(self) -> bool:
        """Whether the subscribing connections to all masters stand."""
        return bool(self._readers) and all(reader.connected for reader in self._readers.values())

    async def follow(self, job: str, follower: Follower) -> None:
        """Subscribe to a job's live channel; returns when Redis has confirmed, so that nothing after it is missed.

        Raises `Unavailable` where the connection is down and stays down for 5 s; the follower stays registered, and
        hears `on_gap` when it is back.
        """
        channel = self._keys.live(job).encode()
        following = self.followings.get(channel)
        if following is None:
            confirmed = asyncio.get_running_loop().create_future()
            following = self.followings[channel] = _Following((follower,), confirmed)
            self._place(channel, following)
        elif follower not in following.followers:
            following.followers += (follower,)
        try:
            async with asyncio.timeout(_CONFIRM_SECONDS):
                await asyncio.shield(following.confirmed)
        except TimeoutError:
            following.overdue = True
            raise Unavailable("The live feed is down; come back in a moment.", retry_after_seconds=2) from None

    def unfollow(self, job: str, follower: Follower) -> None:
        """Follow a job no more; the last follower to go unsubscribes from its channel."""
        channel = self._keys.live(job).encode()
        following = self.followings.get(channel)
        if following is None or follower not in following.followers:
            return
        following.followers = tuple(one for one in following.followers if one is not follower)
        if following.followers:
            return
        del self.followings[channel]
        if not following.confirmed.done():
            following.confirmed.cancel()
        if following.reader is not None:
            following.reader.unsubscribe(channel)

    def _place(self, channel: bytes, following: _Following) -> None:
        """Subscribe where the channel's master is now."""
        owner = self.topology.owner(channel)
        reader = self._readers.get(owner) if owner is not None else None
        if reader is following.reader:
            return
        if following.reader is not None:
            following.reader.unsubscribe(channel)
        following.reader = reader
        if reader is not None:
            reader.subscribe(channel)

    def move(self, reader: _Reader, slot: int) -> None:
        """A master says that it doesn't hold a slot any more."""
        for channel, following in self.followings.items():
            if following.reader is reader and key_slot(channel) == slot:
                following.reader = None
        self._homeless = True
        self.topology.want_refresh()
        self._changed.set()

    async def run(self) -> None:
        """Keep a connection to each master up; never returns. Owned by the store."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._changed.clear()
                if self._homeless:
                    # Before that: the master that sent them away would do so again.
                    await asyncio.sleep(_HOMELESS_SECONDS / 4)
                self._homeless = False
                self._arrange(group)
                await self._changed.wait()

    def _arrange(self, group: asyncio.TaskGroup) -> None:
        """One reader for each master, and every channel at its own."""
        for address in self._readers.keys() - set(self.topology.masters):
            self._readers.pop(address).stop()
        for address in self.topology.masters:
            if address not in self._readers:
                reader = self._readers[address] = _Reader(self, address)
                reader.task = group.create_task(reader.run(), name=f"store keeps the live feed of {address}")
        for channel, following in self.followings.items():
            self._place(channel, following)


class _Reader:
    """The subscribing connection to one master."""

    def __init__(self, feed: Feed, address: Address) -> None:
        self._feed = feed
        self._address = address
        self._wire: Wire | None = None
        self.task: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        return self._wire is not None

    def subscribe(self, channel: bytes) -> None:
        if self._wire is not None:
            # One by one: the channels of one command would have to share a slot.
            self._wire.send(b"SSUBSCRIBE", channel)

    def unsubscribe(self, channel: bytes) -> None:
        if self._wire is not None:
            self._wire.send(b"SUNSUBSCRIBE", channel)

    def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()

    def receive(self, reply: Any) -> None:
        """Take one reply of the connection."""
        if not isinstance(reply, list):
            if isinstance(reply, hiredis.ReplyError):
                self._refused(str(reply))
            return
        match reply:
            case [b"smessage", channel, payload]:
                if (following := self._feed.followings.get(channel)) is not None:
                    for follower in following.followers:
                        follower.on_message(payload)
            case [b"ssubscribe", channel, _]:
                following = self._feed.followings.get(channel)
                if following is None or following.reader is not self:
                    return
                was_followed = following.confirmed.done()
                if not was_followed:
                    following.confirmed.set_result(None)
                if was_followed or following.overdue:
                    # Between two subscriptions, and before one that was waited for in vain, messages were lost.
                    following.overdue = False
                    for follower in following.followers:
                        follower.on_gap()
            case [b"sunsubscribe", channel, _]:
                following = self._feed.followings.get(channel)
                if following is not None and following.reader is self:
                    # Not asked for (the slot moved to another node), or followed again meanwhile.
                    self.subscribe(channel)

    def _refused(self, error: str) -> None:
        word, _, rest = error.partition(" ")
        if word != "MOVED":
            raise ConnectionError(error)
        self._feed.move(self, int(rest.partition(" ")[0]))

    async def run(self) -> None:
        feed = self._feed
        async for wire in kept(feed.topology, feed.identity, self._address, self.receive, "live feed"):
            self._wire = wire
            mine = [channel for channel, following in feed.followings.items() if following.reader is self]
            feed.connects += 1
            feed.reconnects += bool(mine)
            for channel in mine:
                self.subscribe(channel)
            try:
                await self._stay(wire)
            finally:
                self._wire = None
                wire.abort()

    async def _stay(self, wire: Wire) -> None:
        clock = asyncio.get_running_loop().time
        while not wire.lost.done():
            # Not wait_for: on Python 3.11 it may swallow the cancellation that ends this loop.
            await asyncio.wait({wire.lost}, timeout=_PING_SECONDS)
            silence = clock() - wire.heard_at
            if silence > _SILENCE_SECONDS:
                logger.warning("live feed: no sign of life for %.0f s; reconnecting", silence)
                return
            if silence > _PING_SECONDS / 2 and not wire.lost.done():
                wire.send(b"PING")
