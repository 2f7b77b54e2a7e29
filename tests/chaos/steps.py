"""In which step of its life each job is, read from Redis: what a fault has met."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, NamedTuple

from gateway.store.scripts import Keys


class Step(StrEnum):
    """The steps, in the order in which a job goes through them."""

    RESERVED = "submit: reserved"
    CREATED = "submit: created"
    QUEUED = "queued"
    CLAIMED = "claimed"
    BEGUN = "begun"
    RUNNING = "running"
    CANCELLING = "cancel requested"
    RETURNING = "retrying written"
    DELAYED = "retry delay"
    ENDING = "end written"
    ENDED = "ended, still streamed"


class Standing(NamedTuple):
    """Where a job stands: its step, and the worker that has or had it."""

    step: Step
    worker: str


# One script sees one moment. KEYS: due, running, queue; then for each due job its record is asked.
_LOOK = """
local now = redis.call('TIME')
now = tonumber(now[1]) * 1000 + tonumber(now[2]) / 1000
local queued = {}
for _, member in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do
  queued[string.match(member, '^[^|]*')] = true
end
local rows = {}
for _, job in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local record = redis.call('HMGET', ARGV[1] .. ':{' .. job .. '}:job', 'state', 'attempt', 'not_before', 'cancel_by',
    'worker')
  local holder = redis.call('ZSCORE', KEYS[2], job)
  local step
  if not record[1] then
    step = 'RESERVED'
  elseif record[1] == 'running' then
    step = record[4] and 'CANCELLING' or (holder == record[2] and 'RUNNING' or 'BEGUN')
  elseif record[1] ~= 'queued' then
    step = holder and 'ENDING' or 'ENDED'
  elseif queued[job] then
    step = 'QUEUED'
  elseif tonumber(record[3] or 0) > now then
    step = holder and 'RETURNING' or 'DELAYED'
  elseif holder then
    step = holder == '0' and 'CLAIMED' or 'RETURNING'
  else
    step = record[2] == '0' and 'CREATED' or 'RETURNING'
  end
  rows[#rows + 1] = job
  rows[#rows + 1] = step
  rows[#rows + 1] = record[5] or ''
end
return rows
"""


async def standings(client: Any, keys: Keys, kinds: list[str]) -> dict[str, Standing]:
    """Where every job stands to which a kind's due set points; `client` reaches Redis past all proxies."""
    found = {}
    for kind in kinds:
        queue, due, running = keys.kind(kind)[:3]
        rows: list[bytes] = await client.eval(_LOOK, 3, due, running, queue, keys.prefix)
        for i in range(0, len(rows), 3):
            found[rows[i].decode()] = Standing(Step[rows[i + 1].decode()], rows[i + 2].decode())
    return found
