-- use: clock queue
-- Puts a job that used up its attempts among its kind's dead letters, until its record expires. KEYS[8]: the dead.
-- ARGV: job, owner, expires after ms, most dead letters of the kind (the oldest go first)
local now = now_ms()
redis.call('ZADD', KEYS[8], int(now + tonumber(ARGV[3])), ARGV[1] .. '|' .. ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[8], '-inf', int(now))
redis.call('ZREMRANGEBYRANK', KEYS[8], 0, -tonumber(ARGV[4]) - 1)
return 1
