-- Writing a job's log. Every script of the job's slot has the same KEYS:
-- 1 job  2 events  3 outputs  4 fold  5 listeners  6 gone  7 live (channel)

local TERMINAL = { succeeded = true, failed = true, cancelled = true }

-- The data of an event, cut out of its tail `"type":"...",...,"data":{...}}`.
local function data_of(tail)
  local _, at = string.find(tail, '"data":', 1, true)
  return string.sub(tail, at + 1, -2)
end

-- Whether an end is that of a job that used up its attempts.
local function is_dead(state, data)
  if state ~= 'failed' then
    return false
  end
  local read, said = pcall(cjson.decode, data)
  return read and type(said.problem) == 'table' and said.problem.code == 'retries_exhausted'
end

-- Ends the job: its state, what its record keeps of the end, a TTL on every key, and the tombstone that outlives them.
local function end_job(state, now, data, result_blob)
  local record = redis.call('HMGET', KEYS[1], 'retention_ms', 'tombstone_ms', 'owner', 'fingerprint', 'kind',
    'dead_retention_ms')
  local retention = tonumber(is_dead(state, data) and record[6] or record[1])
  redis.call('HSET', KEYS[1], 'state', state, 'ended', int(now), 'expires', int(now + retention), 'end', data,
    'result_blob', result_blob, 'nonce', '')
  for i = 1, 5 do
    redis.call('PEXPIRE', KEYS[i], int(retention))
  end
  redis.call('HSET', KEYS[6], 'owner', record[3], 'fingerprint', record[4], 'kind', record[5], 'state', state)
  redis.call('PEXPIRE', KEYS[6], int(retention + tonumber(record[2])))
end

-- Appends events {type, tail, index} to the log and publishes them as one message, a line for each:
-- `N-T type text`. Returns the first number, the last one, and their time.
-- An append has read the record (last, last_ms, bytes) already, and has more to change in it (`more`: the first number,
-- the last one and their time -> fields and values): each call of Redis that it saves is a tenth of it.
local function write(job, attempt, events, result_blob, record, more)
  record = record or redis.call('HMGET', KEYS[1], 'last', 'last_ms', 'bytes')
  local last = tonumber(record[1] or 0)
  local first = last + 1
  local now = now_ms()
  -- Within a job the time never goes back, whatever the clock does.
  local time = math.max(now, tonumber(record[2] or 0))
  local bytes = tonumber(record[3] or 0)
  local stamp = ',"time":"' .. rfc3339(time) .. '","job":"' .. job .. '","attempt":' .. attempt .. ','
  local lines = {}
  local closing, leaves = nil, false
  for i, event in ipairs(events) do
    last = last + 1
    local id = int(last) .. '-' .. int(time)
    local text = '{"id":' .. int(last) .. stamp .. event[2]
    redis.call('XADD', KEYS[2], id, 't', event[1], 'e', text)
    leaves = leaves or event[1] == 'output' or event[1] == 'delta'
    if event[1] == 'output' then
      redis.call('HSET', KEYS[3], event[3], text)
    elseif event[1] == 'progress' then
      redis.call('HSET', KEYS[1], 'progress', data_of(event[2]))
    elseif TERMINAL[event[1]] then
      closing = event
    end
    bytes = bytes + #text
    lines[i] = id .. ' ' .. event[1] .. ' ' .. text
  end
  local changed = more and more(first, last, time) or {}
  local n = #changed
  changed[n + 1], changed[n + 2] = 'last', int(last)
  changed[n + 3], changed[n + 4] = 'last_ms', int(time)
  changed[n + 5], changed[n + 6] = 'bytes', int(bytes)
  if leaves then
    changed[n + 7], changed[n + 8] = 'leaves', '1'
  end
  redis.call('HSET', KEYS[1], unpack(changed))
  if closing then
    end_job(closing[1], now, data_of(closing[2]), result_blob or '')
  end
  redis.call('SPUBLISH', KEYS[7], table.concat(lines, '\n'))
  return first, last, time
end
