-- use: clock log
-- Notes that an ended job is done again as another one: it is no dead letter any more.
-- ARGV: the new job
-- Returns: 1 if the record is still there
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
redis.call('HSET', KEYS[1], 'redone_as', ARGV[1])
return 1
