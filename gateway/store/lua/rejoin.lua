-- use: clock queue
-- An attempt that waited for its children goes on: it is one of the jobs in hand again.
-- ARGV: job, attempt
redis.call('ZADD', KEYS[3], ARGV[2], ARGV[1])
return 1
