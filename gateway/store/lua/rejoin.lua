-- use: clock queue
-- An attempt that waited for its children asks to be one of the jobs in hand again. Where its kind's cap leaves no place
-- it stands among them below zero until it asks again: that holds back new claims, and whoever takes it out of hand takes
-- it out of there.
-- ARGV: job, attempt, at once (1: whatever the cap says)
-- Returns: 1 if it is in hand
local job, attempt = ARGV[1], ARGV[2]
local there = tonumber(redis.call('ZSCORE', KEYS[3], job) or -1)
local cap = tonumber(redis.call('HGET', KEYS[6], 'max_running') or '')
if ARGV[3] ~= '1' and cap and there < 0 and redis.call('ZCOUNT', KEYS[3], '0', '+inf') >= cap then
  redis.call('ZADD', KEYS[3], -1, job)
  return 0
end
redis.call('ZADD', KEYS[3], attempt, job)
-- A look that has found it waiting for its children may still be on its way.
outdate(job)
return 1
