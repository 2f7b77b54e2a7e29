-- use: clock log
-- Notes that an attempt waits for children, or goes on, and whose parent it is.
-- ARGV: attempt, nonce, waits (1 or empty), child (or empty)
-- Returns: ok | lost
local record = redis.call('HMGET', KEYS[1], 'attempt', 'nonce', 'state', 'children')
if record[1] ~= ARGV[1] or record[2] ~= ARGV[2] or record[3] ~= 'running' then
  return 'lost'
end
redis.call('HSET', KEYS[1], 'waits', ARGV[3])
local child, children = ARGV[4], record[4] or ''
if child ~= '' and not string.find(children, child, 1, true) then
  redis.call('HSET', KEYS[1], 'children', children == '' and child or children .. ' ' .. child)
end
return 'ok'
