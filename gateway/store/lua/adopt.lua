-- use: clock log
-- Takes a handed-over attempt: from now on only the one who did so can write, under a new nonce.
-- ARGV: job, attempt, nonce that was handed over, new nonce, lease ms, worker
-- Returns: adopted, all fields of the record | lost | ended, state
local job, attempt, nonce = ARGV[1], ARGV[2], ARGV[4]
local record = redis.call('HMGET', KEYS[1], 'attempt', 'nonce', 'state')
if TERMINAL[record[3]] then
  return { 'ended', record[3] }
end
if record[1] ~= attempt or record[3] ~= 'running' then
  return { 'lost' }
end
if record[2] ~= nonce then
  if record[2] ~= ARGV[3] then
    return { 'lost' }
  end
  local now = now_ms()
  redis.call('HSET', KEYS[1], 'nonce', nonce, 'batch', '0', 'worker', ARGV[6], 'lease_until',
    int(now + tonumber(ARGV[5])), 'seen', int(now))
  redis.call('HDEL', KEYS[1], 'handed')
  redis.call('SPUBLISH', KEYS[7], 'seen ' .. int(now) .. ' ' .. ARGV[6])
end
return { 'adopted', redis.call('HGETALL', KEYS[1]) }
