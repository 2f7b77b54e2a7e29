-- use: clock queue
-- Sees to it that somebody looks at a job no later than asked: without the token, due may only move earlier.
-- ARGV: job, look after ms
local due = redis.call('ZSCORE', KEYS[2], ARGV[1])
if not due or tonumber(due) > now_ms() + tonumber(ARGV[2]) then
  set_due(ARGV[1], tonumber(ARGV[2]))
end
return 1
