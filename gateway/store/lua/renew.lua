-- use: clock log
-- Renews a lease and tells listeners that the worker lives. An expired lease may be renewed until a look has acted; one
-- that was made longer for a hand-over is not made shorter.
-- `handed` stands in the record while nobody has the attempt in hand: its token is on its way.
-- ARGV: attempt, nonce, lease ms, worker, hand (over: nothing is done if somebody asked for the end | taken | empty)
-- Returns: ok, canceller | lost
local record = redis.call('HMGET', KEYS[1], 'attempt', 'nonce', 'state', 'cancel_by', 'lease_until')
if record[1] ~= ARGV[1] or record[2] ~= ARGV[2] or record[3] ~= 'running' then
  return { 'lost' }
end
local hand = ARGV[5] or ''
if hand == 'over' then
  if record[4] then
    return { 'ok', record[4] }
  end
  redis.call('HSET', KEYS[1], 'handed', '1')
elseif hand == 'taken' then
  redis.call('HDEL', KEYS[1], 'handed')
end
local now = now_ms()
local lease_until = math.max(now + tonumber(ARGV[3]), tonumber(record[5]))
redis.call('HSET', KEYS[1], 'lease_until', int(lease_until), 'seen', int(now))
redis.call('SPUBLISH', KEYS[7], 'seen ' .. int(now) .. ' ' .. ARGV[4])
return { 'ok', record[4] or '' }
