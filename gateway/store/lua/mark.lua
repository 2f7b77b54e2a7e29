-- use: clock log
-- Notes that somebody listens to a job, for jobs that are cancelled when nobody does; others keep no marks.
-- ARGV: listener, for how long from now in ms (0: it has just left)
-- Returns: 1 if the mark was noted
local record = redis.call('HMGET', KEYS[1], 'state', 'disconnect_grace_ms')
if not record[2] or TERMINAL[record[1]] then
  return 0
end
redis.call('ZADD', KEYS[5], int(now_ms() + tonumber(ARGV[2])), ARGV[1])
-- Only the last mark to end counts.
redis.call('ZREMRANGEBYRANK', KEYS[5], 0, -65)
return 1
