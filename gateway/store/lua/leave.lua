-- use: clock queue
-- An attempt is over, or only waits: its worker takes the job out of hand. Without the token, due may only move earlier.
-- ARGV: job, attempt, where (queue | later), due after ms, priority, owner, how long it ran in ms (0: of no account)
local job = ARGV[1]
local holder = redis.call('ZSCORE', KEYS[3], job)
-- A higher number is another worker's attempt; 0 is a claim whose attempt has not been noted yet.
if not holder or tonumber(holder) > tonumber(ARGV[2]) then
  return 0
end
leave_running(job)
local ran = tonumber(ARGV[7] or 0)
if ran > 0 then
  -- How long attempts take: the newest counts for a fifth. What a waiting job is told is made of it.
  local before = tonumber(redis.call('HGET', KEYS[6], 'ran_ms') or ran)
  redis.call('HSET', KEYS[6], 'ran_ms', int(before + (ran - before) / 5))
end
if ARGV[3] == 'queue' then
  enqueue(job, ARGV[5], ARGV[6], 0)
end
local due = redis.call('ZSCORE', KEYS[2], job)
if not due or tonumber(due) > now_ms() + tonumber(ARGV[4]) then
  set_due(job, tonumber(ARGV[4]))
else
  -- The hold of this attempt, or a look that has found it in hand, may still be on its way.
  outdate(job)
end
return 1
