-- use: clock
-- Says that a worker lives, and forgets those that have been silent for long. KEYS: the workers.
-- ARGV: worker, forget after seconds
local now = math.floor(now_ms() / 1000)
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[2]))
return 1
