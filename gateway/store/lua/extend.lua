-- use: clock
-- Takes a part into an upload, if it begins where the upload ends. The upload keeps its time to live.
-- KEYS: upload, parts. ARGV: offset, bytes, blob of the part, length ('' leaves it as it is), most parts
-- Returns: ok, offset | wrong_offset, offset | too_long, length | too_many, parts | unknown
local record = redis.call('HMGET', KEYS[1], 'offset', 'length', 'last_blob')
if not record[1] then
  return { 'unknown' }
end
if record[3] == ARGV[3] then
  -- This very call, sent again after a lost reply.
  return { 'ok', record[1] }
end
if record[1] ~= ARGV[1] then
  return { 'wrong_offset', record[1] }
end
local length = ARGV[4] ~= '' and ARGV[4] or record[2]
local offset = int(tonumber(ARGV[1]) + tonumber(ARGV[2]))
if (record[2] ~= '' and length ~= record[2]) or (length ~= '' and tonumber(offset) > tonumber(length)) then
  return { 'too_long', length }
end
if tonumber(ARGV[2]) > 0 then
  if redis.call('LLEN', KEYS[2]) >= tonumber(ARGV[5]) then
    return { 'too_many', ARGV[5] }
  end
  redis.call('RPUSH', KEYS[2], ARGV[3])
  redis.call('PEXPIREAT', KEYS[2], redis.call('PEXPIRETIME', KEYS[1]))
end
redis.call('HSET', KEYS[1], 'offset', offset, 'length', length, 'last_blob', ARGV[3])
return { 'ok', offset }
