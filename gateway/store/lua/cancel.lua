-- use: clock log
-- Asks for a job's cancellation: one that nobody has in hand ends at once, queued or handed over and not adopted yet; a
-- running one is told, an ended one is left as it is.
-- ARGV: job, by, tail of `cancel_requested`, tail of `cancelled`
-- Returns: the state after this call | freed (cancelled, and its place under its kind's cap is free) | unknown
local job = ARGV[1]
local record = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'cancel_by', 'handed')
local state = record[1]
if not state then
  return 'unknown'
end
local freed = record[4] and 'freed'
if TERMINAL[state] then
  return state == 'cancelled' and freed or state
end
if state == 'running' and not freed and record[3] then
  return state
end
redis.call('HSET', KEYS[1], 'cancel_by', ARGV[2], 'cancel_tail', ARGV[4])
if state == 'queued' or freed then
  write(job, record[2], { { 'cancelled', ARGV[4], '' } })
  return freed or 'cancelled'
end
write(job, record[2], { { 'cancel_requested', ARGV[3], '' } })
return 'running'
