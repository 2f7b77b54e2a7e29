-- use: clock queue
-- Puts a job's pointers where its record says they belong. Only the holder of the due entry's token may: a claim or a
-- later look has a newer one.
-- ARGV: job, token, where, due after ms, priority, owner, attempt
-- where: drop (nowhere) | later (only due) | running (in hand) | aside (only due, or in line to go on) | queue | keep
-- (where it is)
-- Returns: 1 if done, 0 if the token is not good any more
local job, where, delay = ARGV[1], ARGV[3], tonumber(ARGV[4])
local score = redis.call('ZSCORE', KEYS[2], job)
if not score or tonumber(score) ~= tonumber(ARGV[2]) then
  return 0
end
if where ~= 'keep' and where ~= 'queue' then
  unqueue(job, ARGV[5], ARGV[6])
end
-- Below zero stands who waits to go on: it is not in hand yet, and a look doesn't send it away.
local in_line = tonumber(redis.call('ZSCORE', KEYS[3], job) or 0) < 0 and (where == 'running' or where == 'aside')
if where == 'running' and not in_line then
  redis.call('ZADD', KEYS[3], ARGV[7], job)
elseif where ~= 'keep' and not in_line then
  redis.call('ZREM', KEYS[3], job)
end
if where == 'queue' then
  enqueue(job, ARGV[5], ARGV[6], 0)
end
if where == 'drop' then
  redis.call('ZREM', KEYS[2], job)
else
  set_due(job, delay)
end
if where ~= 'running' and where ~= 'keep' then
  ring_if_claimable()
end
return 1
