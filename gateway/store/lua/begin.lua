-- use: clock log
-- Begins an attempt: the lease, and `started`.
-- ARGV: job, worker, nonce, lease ms, run time-out grace ms, tail of `started`
-- Returns: begun, all fields of the record | unknown | ended | held | early, ms
local job, worker, nonce = ARGV[1], ARGV[2], ARGV[3]
local record = redis.call('HMGET', KEYS[1], 'state', 'nonce', 'not_before', 'cancel_tail', 'attempt', 'run_timeout_ms')
local state = record[1]
if not state then
  return { 'unknown' }
end
if TERMINAL[state] then
  return { 'ended' }
end
if state == 'running' then
  if record[2] == nonce then
    return { 'begun', redis.call('HGETALL', KEYS[1]) }
  end
  -- Also when the lease is over: only a look takes a job away, since only it counts the failure.
  return { 'held' }
end
if record[4] then
  write(job, record[5], { { 'cancelled', record[4], '' } })
  return { 'ended' }
end
local now = now_ms()
local early = tonumber(record[3] or 0) - now
if early > 0 then
  return { 'early', int(early) }
end
local attempt = int(tonumber(record[5]) + 1)
redis.call('HSET', KEYS[1], 'state', 'running', 'attempt', attempt, 'nonce', nonce, 'batch', '0', 'worker', worker,
  'lease_until', int(now + tonumber(ARGV[4])), 'seen', int(now), 'not_before', '0',
  'run_deadline', int(now + tonumber(record[6]) + tonumber(ARGV[5])))
redis.call('HSETNX', KEYS[1], 'started', int(now))
redis.call('HDEL', KEYS[1], 'progress', 'waits', 'handed')
-- Before `started`: listeners know then whose silence they count.
redis.call('SPUBLISH', KEYS[7], 'seen ' .. int(now) .. ' ' .. worker)
write(job, attempt, { { 'started', ARGV[6], '' } })
return { 'begun', redis.call('HGETALL', KEYS[1]) }
