-- use: clock log listeners
-- Looks at one job whose time has come, writes what is to be written, and says where its pointers belong.
-- ARGV: job, tails of: deadline, run_timeout, start_deadline, retries_exhausted, retrying; end's grace ms, longest
-- look ms, for how long who looks has been able to reach Redis, ms
-- Returns: verdict, due after ms, kind, priority, owner, attempt, state. Verdicts are settle's `where`, `ended` for a
-- job whose last things are to be done before the drop (`after` is then when it expires), `alone` for one that is to be
-- cancelled since nobody listens, and `unknown`.
local job = ARGV[1]
local record = redis.call('HMGET', KEYS[1], 'state', 'kind', 'priority', 'owner', 'attempt', 'ended', 'cancel_tail',
  'lease_until', 'deadline', 'run_deadline', 'failures', 'max_attempts', 'start_deadline', 'not_before', 'started',
  'expires', 'disconnect_grace_ms', 'created', 'waits')
local state = record[1]
if not state then
  return { 'unknown' }
end
local now = now_ms()
local attempt = record[5]

local function at(i)
  return tonumber(record[i] or 0)
end

local function say(verdict, after)
  return { verdict, int(math.max(0, after)), record[2], record[3], record[4], attempt, redis.call('HGET', KEYS[1], 'state') }
end

-- An end that was just written may still be lost in a failover: look again before its pointers go.
local grace = tonumber(ARGV[7])
if TERMINAL[state] then
  local age = now - at(6)
  if age < grace then
    return say('later', grace - age)
  end
  return say('ended', at(16) - now)
end

local function finish(type, tail)
  if redis.call('HGET', KEYS[1], 'leaves') then
    tail = string.gsub(tail, '"partial":false}}$', '"partial":true}}')
  end
  write(job, attempt, { { type, tail, '' } })
  return say('later', grace)
end

local lease_left = state == 'running' and at(8) - now or 0
if record[7] and lease_left <= 0 then
  return finish('cancelled', record[7])
end
if now >= at(9) then
  return finish('failed', ARGV[2])
end
local look = math.min(tonumber(ARGV[8]), at(9) - now)
if record[17] and not record[7] then
  local alone = alone_after(now, at(17), at(18), tonumber(ARGV[9]))
  if alone <= 0 then
    return say('alone', 0)
  end
  look = math.min(look, alone)
end
if state == 'running' then
  if now >= at(10) then
    return finish('failed', ARGV[3])
  end
  if lease_left > 0 then
    -- Who only waits for children is not in hand: its place under the kind's cap is another's.
    return say(record[19] == '1' and 'aside' or 'running', math.min(lease_left, at(10) - now, look))
  end
  if at(11) + 1 >= at(12) then
    return finish('failed', ARGV[5])
  end
  redis.call('HSET', KEYS[1], 'state', 'queued', 'nonce', '', 'worker', '', 'lease_until', '0', 'not_before', '0')
  redis.call('HINCRBY', KEYS[1], 'failures', 1)
  write(job, attempt, { { 'retrying', ARGV[6], '' } })
  return say('queue', look)
end
if at(13) > 0 and not record[15] then
  if now >= at(13) then
    return finish('failed', ARGV[4])
  end
  look = math.min(look, at(13) - now)
end
if at(14) > now then
  return say('later', math.min(look, at(14) - now))
end
return say('queue', look)
