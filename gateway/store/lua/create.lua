-- use: clock log
-- Second step of a submit: the record and the first event, unless the job is there already.
-- ARGV: job, nonce of this submit, fingerprint, tail of `queued`, then the record's fields and values;
-- `X_after_ms` fields are durations, and become times here.
-- Returns: created or replayed, and all fields of the record but its input | conflict | gone
local job, nonce, fingerprint = ARGV[1], ARGV[2], ARGV[3]

-- Who submits has the input, which may be the largest part by far.
local function without_input()
  local flat = redis.call('HGETALL', KEYS[1])
  for i = 1, #flat, 2 do
    if flat[i] == 'input' then
      flat[i + 1] = ''
    end
  end
  return flat
end

local there = redis.call('HMGET', KEYS[1], 'fingerprint', 'create_nonce')
if there[1] then
  if there[1] ~= fingerprint then
    return { 'conflict' }
  end
  -- The same nonce is this very call, sent again after a lost reply.
  return { there[2] == nonce and 'created' or 'replayed', without_input() }
end
if redis.call('EXISTS', KEYS[6]) == 1 then
  return { redis.call('HGET', KEYS[6], 'fingerprint') == fingerprint and 'gone' or 'conflict' }
end
local now = now_ms()
redis.call('HSET', KEYS[1], 'id', job, 'state', 'queued', 'fingerprint', fingerprint, 'create_nonce', nonce, 'created',
  int(now), 'attempt', '0', 'failures', '0', 'last', '0', 'last_ms', '0', 'bytes', '0', 'nonce', '', 'batch', '0')
for i = 5, #ARGV, 2 do
  local field, value = ARGV[i], ARGV[i + 1]
  local time = string.match(field, '^(.*)_after_ms$')
  if time then
    field, value = time, int(now + tonumber(value))
  end
  redis.call('HSET', KEYS[1], field, value)
end
write(job, '0', { { 'queued', ARGV[4], '' } })
return { 'created', without_input() }
