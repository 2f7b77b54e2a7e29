"""The equations: what Redis has against what the books have. Each that doesn't balance is a broken promise."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

from gateway.event_text import decode_event
from gateway.protocol import TERMINAL_TYPES, Event, EventType, parse_time
from gateway.store.scripts import Keys
from tests.chaos.book import Book, Entry

_AT_ONCE: Final = 100
_EXPECTED: Final = {"refused": EventType.FAILED, "forsaken": EventType.CANCELLED}


async def check_jobs(client: Any, keys: Keys, book: Book, entries: Sequence[Entry]) -> None:
    """Hold the logs of ended jobs against what was asked for, and against what each listener was given."""
    for start in range(0, len(entries), _AT_ONCE):
        some = entries[start : start + _AT_ONCE]
        async with client.pipeline(transaction=False) as pipe:
            for entry in some:
                pipe.hmget(keys.record(entry.job), "state", "last")
                pipe.xrange(keys.events(entry.job))
            rows = await pipe.execute()
        for i, entry in enumerate(some):
            (state, last), log = rows[2 * i], rows[2 * i + 1]
            if state is None:
                book.breach("lost", f"{entry.job} ({entry.key}) is not in Redis")
                continue
            book.counts["ended"] += 1
            book.counts["events logged"] += len(log)
            _check_log(book, entry, state.decode(), int(last), [fields[b"e"] for _, fields in log])
            entry.checked = True


def _check_log(book: Book, entry: Entry, state: str, last: int, texts: list[bytes]) -> None:
    events = [decode_event(text) for text in texts]
    numbers = [event.id for event in events]
    if numbers != list(range(1, last + 1)):
        book.breach("lost", f"{entry.job}: the log's numbers are {numbers}, the record says {last}")
    ends = [event for event in events if event.type in TERMINAL_TYPES]
    if len(ends) != 1 or events[-1] is not ends[0] or not ends[0].terminal or ends[0].type != state:
        book.breach("terminals", f"{entry.job}: ends {[(end.id, end.type) for end in ends]} of {last}, state {state}")
        return
    wanted = _EXPECTED.get(entry.kind, EventType.SUCCEEDED)
    if ends[0].type not in {wanted, EventType.CANCELLED}:
        book.breach("terminals", f"{entry.job}: {entry.kind} ended with {texts[-1].decode()}")
    # Who cancels for want of listeners is the product itself.
    alone = ends[0].type == EventType.CANCELLED and ends[0].data["by"] == "outlast"
    if alone != (entry.kind == "forsaken") and not (alone and _nobody_came(entry, events[0], ends[0])):
        book.breach("terminals", f"{entry.job}: {entry.kind} {entry.body} ended with {texts[-1].decode()}")
    attempts = [event.attempt or 0 for event in events]
    if attempts != sorted(attempts):
        book.breach("out of order", f"{entry.job}: the attempts of the log's events are {attempts}")
    _check_lines(book, entry, events)
    digest = hashlib.sha256(b"".join(text + b"\n" for text in texts)).digest()
    for heard in entry.heard:
        if heard.cursor.number != last:
            book.breach("lost", f"{entry.job}: a listener has {heard.cursor} of {last}")
        elif heard.digest.digest() != digest:
            book.breach("lost", f"{entry.job}: a listener was given other texts than the log has")


def _nobody_came(entry: Entry, begin: Event, end: Event) -> bool:
    """Whether nobody has listened for the job's grace before its end: on a machine that is slow, that happens.

    Who comes or goes in the last second may be noticed before the look or after it.
    """
    grace = entry.body.get("disconnect_grace_seconds")
    if grace is None or begin.time is None or end.time is None:
        return False
    began, ended = parse_time(begin.time) / 1000, parse_time(end.time) / 1000
    return ended - began >= grace and not any(one.was_there(ended - grace + 1, ended - 1) for one in entry.heard)


def _check_lines(book: Book, entry: Entry, events: list[Event]) -> None:
    """Each attempt's own lines, 0, 1, 2, ...: none is lost in between, none is another attempt's."""
    next_line = 0
    for event in events:
        if event.type == EventType.STARTED:
            next_line = 0
        elif event.type == "chaos.line":
            if event.data != {"attempt": event.attempt, "line": next_line}:
                book.breach("lost", f"{entry.job}: event {event.id} is {event.data}, not line {next_line}")
            next_line += 1
    if events[-1].type == EventType.SUCCEEDED and next_line != entry.body["input"]["lines"]:
        book.breach("lost", f"{entry.job}: succeeded with {next_line} lines of {entry.body['input']['lines']}")


async def check_redis(client: Any, keys: Keys, kinds: list[str], book: Book) -> None:
    """Nothing is in Redis that nobody asked for, nothing is open, and nothing waits or is in hand."""
    there = {keys.job_of(name.decode()) async for name in client.scan_iter(f"{keys.prefix}:{{*}}:job", count=1000)}
    for job in sorted(there - set(book.entries)):
        book.breach("doubled", f"{job} is in Redis, but no submit has its id")
    for job in sorted(set(book.entries) - there):
        book.breach("lost", f"{job} was accepted and is not in Redis")
    for kind in kinds:
        queue, _, running, _, _, _, waiting = keys.kind(kind)
        counts = {name.decode(): int(count) for name, count in (await client.hgetall(waiting)).items()}
        left = {"waiting": await client.zcard(queue), "in hand": await client.zcard(running)} | {
            f"counted as waiting for {owner}": count for owner, count in counts.items()
        }
        if any(left.values()):
            book.breach("stuck", f"kind {kind}, all jobs ended: {left}")
