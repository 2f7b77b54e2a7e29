-- use: clock log
-- Asks for a job's cancellation: a queued job ends at once, a running one is told, an ended one is left as it is.
-- ARGV: job, by, tail of `cancel_requested`, tail of `cancelled`
-- Returns: the state after this call | unknown
local job = ARGV[1]
local record = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'cancel_by')
local state = record[1]
if not state then
  return 'unknown'
end
if TERMINAL[state] or (state == 'running' and record[3]) then
  return state
end
redis.call('HSET', KEYS[1], 'cancel_by', ARGV[2], 'cancel_tail', ARGV[4])
if state == 'queued' then
  write(job, record[2], { { 'cancelled', ARGV[4], '' } })
  return 'cancelled'
end
write(job, record[2], { { 'cancel_requested', ARGV[3], '' } })
return 'running'
