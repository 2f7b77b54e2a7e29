"""What is left in Redis when everything has ended: nothing that grows with the jobs, and all of it documented."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.documents import KindDocument
from gateway.requests import JobOptions
from gateway.store import Store
from tests.jobs import begin, end, event, look_later, new_job, submit, use_up

pytestmark = pytest.mark.parametrize("redis_url", ["valkey", "cluster"], indirect=True)

KIND = KindDocument(kind="echo", max_attempts=3)
PAGE = (Path(__file__).parents[2] / "docs" / "redis.md").read_text(encoding="utf-8")


def documented(prefix: str) -> re.Pattern[str]:
    """The keys of the page's table of what stays."""
    rows = PAGE.split("## What stays")[1].split("\n|")
    names = [name for row in rows for name in re.findall(r"`ol:([a-z]+(?::[{A-Z}]+)?)`", row.split("|")[0])]
    assert len(names) >= 9
    patterns = (re.escape(name).replace(r"\{KIND\}", r"\{[^}]+\}").replace("OWNER", r"[^:{}]+") for name in names)
    return re.compile(f"{prefix}:({'|'.join(patterns)})")


async def kept_for_ever(store: Store) -> set[str]:
    """All keys without a time to live."""
    found = set()
    for server in store._client.servers():
        async for key in server.scan_iter(f"{store._keys.prefix}:*"):
            if await server.ttl(key) == -1:
                found.add(key.decode())
    return found


async def story(store: Store, number: int) -> None:
    """One job for each way to end, with all that may stand beside one, until nobody has to look at any of them."""
    dead = await use_up(store, KIND)
    keyed = await store.job_id("me", f"key {number}")
    await store.submit(keyed, new_job(KIND), keyed=True)
    lease = await begin(store, "echo")
    outputs = [event("output", {"index": "p", "value": 1}, "p"), event("delta", {"channel": "text", "text": "x"})]
    await store.append(lease, 1, outputs)
    await store.hand_over(lease, 60, "worker")
    await look_later(store, await end(store, lease, batch=2))

    watched = await submit(store, KIND, options=JobOptions(on_disconnect="cancel"))
    await store.mark(watched.id, "listener", 60)
    await look_later(store, await store.cancel(watched.id, "me", "enough"))
    await store.mark(watched.id, "late", 60)

    again = await submit(store, KIND, owner="other")
    await store.redone(dead, again.id)
    retried = await begin(store, "echo")
    await store.retry(retried, 1, [], {"code": "busy", "detail": "busy"}, 0, counts=True)
    await store.leave(retried, again, retry_after_seconds=0)
    await store.pause("echo", True)
    await look_later(store, await store.cancel(again.id, "other", "enough"))
    await store.pause("echo", False)

    open_upload = await store.create_upload("me", name="a", content_type="", length=2)
    await store.extend_upload(open_upload.id, 0, 1, "uploads/a/1")
    sealed = await store.create_upload("me", name="b", content_type="", length=1)
    await store.extend_upload(sealed.id, 0, 1, "uploads/b/1")
    await store.seal_upload(sealed.id, "uploads/b/2", "00")


async def test_what_stays_when_everything_has_ended_is_documented_and_does_not_grow(store: Store) -> None:
    """More jobs leave no more keys behind than the first, and the page names each with its bound."""
    await store.register_kind(KIND)
    await store.check_place("here")
    await store.present("worker", ["echo"], 1)
    await store.sweep()
    await story(store, 0)
    first = await kept_for_ever(store)

    for number in range(1, 4):
        await story(store, number)
    left = await kept_for_ever(store)

    named = documented(store._keys.prefix)
    assert [key for key in sorted(left) if named.fullmatch(key) is None] == []
    assert left == first
