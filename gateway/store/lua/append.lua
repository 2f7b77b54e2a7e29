-- use: clock log
-- Writes an attempt's next batch: log, state, outputs and publication in one step.
-- ARGV: job, attempt, nonce, batch (or `?word` of a writer that doesn't count), fold (cursor and JSON), fold's number, result blob, retry delay ms, counts (1: a failure), then
-- type, tail, index of each event. The last event may be terminal, or `retrying`.
-- Returns: ok, first number, last number, time, canceller | lost | gap
local job, attempt, nonce, batch = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local record = redis.call('HMGET', KEYS[1], 'attempt', 'state', 'nonce', 'batch', 'answer', 'answer_nonce', 'cancel_by',
  'word', 'handed', 'last', 'last_ms', 'bytes')
if record[1] ~= attempt then
  return { 'lost' }
end
-- Only this very call, sent again, repeats its word; any other one is the next batch, whoever else writes meanwhile.
local word = string.sub(batch, 1, 1) == '?' and batch
if word then
  batch = record[8] == word and record[4] or int(tonumber(record[4]) + 1)
end
-- Asked before the state: the end's own repeat must hear of its success.
if record[6] == nonce and record[4] == batch then
  return cjson.decode(record[5])
end
if record[2] ~= 'running' or record[3] ~= nonce then
  return { 'lost' }
end
-- Giving the job back and nothing else needs no earlier batch: so ends an attempt whose batches Redis lost.
local gives_back = #ARGV == 12 and ARGV[10] == 'retrying'
if tonumber(batch) ~= tonumber(record[4]) + 1 and not gives_back then
  return { 'gap' }
end

local events = {}
for i = 10, #ARGV, 3 do
  events[#events + 1] = { ARGV[i], ARGV[i + 1], ARGV[i + 2] }
end
local closing = events[#events] and events[#events][1]
if closing == 'retrying' then
  local now = now_ms()
  redis.call('HSET', KEYS[1], 'state', 'queued', 'nonce', '', 'worker', '', 'lease_until', '0', 'not_before',
    int(now + tonumber(ARGV[8])))
  redis.call('HINCRBY', KEYS[1], 'failures', ARGV[9])
end
local answer
local _, last = write(job, attempt, events, ARGV[7], { record[10], record[11], record[12] }, function(from, to, time)
  answer = { 'ok', int(from), int(to), int(time), record[7] or '' }
  local changed = { 'batch', batch, 'answer', cjson.encode(answer), 'answer_nonce', nonce }
  if word then
    changed[7], changed[8] = 'word', word
  end
  return changed
end)
if record[9] then
  redis.call('HDEL', KEYS[1], 'handed')
end

-- A fold from the writer: kept for listeners that ask for a snapshot, and what a trim may reach back to.
if ARGV[5] ~= '' then
  redis.call('SET', KEYS[4], ARGV[5])
  local marks = redis.call('HMGET', KEYS[1], 'fold_at', 'fold_bytes', 'bytes', 'trimmed_to', 'trimmed_bytes')
  local before, before_bytes = tonumber(marks[1] or 0), tonumber(marks[2] or 0)
  redis.call('HSET', KEYS[1], 'fold_at', ARGV[6], 'fold_bytes', marks[3])
  local kept = last - tonumber(marks[4] or 0)
  local kept_bytes = tonumber(marks[3]) - tonumber(marks[5] or 0)
  if before > tonumber(marks[4] or 0) and (kept > 10000 or kept_bytes > 4194304) then
    -- The event of that fold stays: it proves the cursor of who was just given it.
    redis.call('XTRIM', KEYS[2], 'MINID', int(before) .. '-0')
    redis.call('HSET', KEYS[1], 'trimmed_to', int(before), 'trimmed_bytes', int(before_bytes))
  end
  if TERMINAL[closing] then
    redis.call('PEXPIRE', KEYS[4], redis.call('PTTL', KEYS[1]))
  end
end
return answer
