-- A kind's pointers. Every script of the kind's slot has the same KEYS:
-- 1 queue  2 due  3 running  4 fair  5 bell  6 kind  7 waiting
-- A queue's member is `job|priority|owner`: all that a claim needs to keep the books without the job's record.

local RINGS = 100

local function member_of(job, priority, owner)
  return job .. '|' .. priority .. '|' .. owner
end

-- Wakes one idle worker. A lost ring is harmless: workers poll as well.
local function ring()
  redis.call('LPUSH', KEYS[5], '1')
  redis.call('LTRIM', KEYS[5], 0, RINGS - 1)
end

local function free_places()
  local cap = tonumber(redis.call('HGET', KEYS[6], 'max_running') or '')
  if not cap then
    return math.huge
  end
  return cap - redis.call('ZCARD', KEYS[3])
end

local function ring_if_claimable()
  if redis.call('HGET', KEYS[6], 'paused') ~= '1' and free_places() > 0 and redis.call('ZCARD', KEYS[1]) > 0 then
    ring()
  end
end

-- Moves a job's due entry to `delay_ms` from now and returns the new score, which is unique: whoever has it has the
-- token of this entry. (2^41 ms leave 11 bits of a double for the fraction.)
local function set_due(job, delay_ms)
  local ticket = redis.call('HINCRBY', KEYS[6], 'ticket', 1)
  local score = string.format('%.10f', now_ms() + math.max(0, math.floor(delay_ms)) + (ticket % 1024) / 1024)
  redis.call('ZADD', KEYS[2], score, job)
  return redis.call('ZSCORE', KEYS[2], job)
end

-- Lets a job's due entry stand where it is, under a new token: what was decided on how things stood before is too late.
local function outdate(job)
  local due = redis.call('ZSCORE', KEYS[2], job)
  if due then
    set_due(job, tonumber(due) - now_ms())
  end
end

-- What counts a key's users together; nil for an owner that is a key itself. Names are URL-quoted: `key%2Fuser`.
local function users_of(owner)
  return string.match(owner, '^.-%%2F')
end

local function waiting(owner, priority, by)
  redis.call('HINCRBY', KEYS[7], '*', by)
  local users = users_of(owner)
  if users and redis.call('HINCRBY', KEYS[7], users, by) <= 0 then
    redis.call('HDEL', KEYS[7], users)
  end
  redis.call('HINCRBY', KEYS[7], owner, by)
  if redis.call('HINCRBY', KEYS[7], owner .. '|' .. priority, by) <= 0 then
    redis.call('HDEL', KEYS[7], owner .. '|' .. priority)
    -- An owner with nothing waiting has no claim on a later place.
    redis.call('ZREM', KEYS[4], owner .. '|' .. priority)
  end
  if tonumber(redis.call('HGET', KEYS[7], owner)) <= 0 then
    redis.call('HDEL', KEYS[7], owner)
  end
end

-- Puts a job into the queue if it isn't there. `step` > 0 charges its owner for a place (a new job); 0 puts it at
-- virtual now (a job that had its turn and comes back).
local function enqueue(job, priority, owner, step)
  local member = member_of(job, priority, owner)
  if redis.call('ZSCORE', KEYS[1], member) then
    return false
  end
  local score = tonumber(redis.call('HGET', KEYS[6], 'virtual_now') or 0)
  if step > 0 then
    local mine = owner .. '|' .. priority
    local last = redis.call('ZSCORE', KEYS[4], mine)
    -- Who has nothing waiting is charged a little less, and so goes before the next job of any backlog.
    score = math.max(score, tonumber(last or 0)) + (last and step or step - 1)
    redis.call('ZADD', KEYS[4], int(score), mine)
  end
  redis.call('ZADD', KEYS[1], int(score), member)
  waiting(owner, priority, 1)
  ring()
  return true
end

local function unqueue(job, priority, owner)
  if redis.call('ZREM', KEYS[1], member_of(job, priority, owner)) == 1 then
    waiting(owner, priority, -1)
  end
end

local function leave_running(job)
  if redis.call('ZREM', KEYS[3], job) == 1 then
    ring_if_claimable()
  end
end
