-- use: clock queue
-- Last step of a submit: into the queue, unless it is there or in hand already, and due no later than asked.
-- ARGV: job, priority, owner, step, look after ms
-- Returns: 1 if this call put it there
local job = ARGV[1]
if redis.call('ZSCORE', KEYS[3], job) then
  return 0
end
if not enqueue(job, ARGV[2], ARGV[3], tonumber(ARGV[4])) then
  return 0
end
set_due(job, tonumber(ARGV[5]))
return 1
