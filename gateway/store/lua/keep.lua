-- use: clock log
-- Says how long a step's data is kept: its parent's end decides, or a later job that has found it and is its new parent.
-- ARGV: ms from now, or from its own end if it is open still; the new parent (or empty)
-- Returns: 1 if it is there
local record = redis.call('HMGET', KEYS[1], 'state', 'tombstone_ms')
if not record[1] then
  return 0
end
if ARGV[2] ~= '' then
  redis.call('HSET', KEYS[1], 'parent', ARGV[2])
end
if not TERMINAL[record[1]] then
  redis.call('HSET', KEYS[1], 'retention_ms', ARGV[1], 'dead_retention_ms', ARGV[1])
  return 1
end
redis.call('HSET', KEYS[1], 'expires', int(now_ms() + tonumber(ARGV[1])))
for i = 1, 5 do
  redis.call('PEXPIRE', KEYS[i], ARGV[1])
end
redis.call('PEXPIRE', KEYS[6], int(tonumber(ARGV[1]) + tonumber(record[2])))
return 1
