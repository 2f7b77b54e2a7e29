-- use: clock queue
-- Takes the next jobs of a kind for a worker that can begin them now. KEYS[8]: this worker's last claim.
-- ARGV: number of this claim (a repeat gets the first answer), how many, hold ms
-- Returns: a flat list of job, token
local before = redis.call('HMGET', KEYS[8], 'number', 'answer')
if before[1] == ARGV[1] then
  return cjson.decode(before[2])
end
local taken = {}
if redis.call('HGET', KEYS[6], 'paused') ~= '1' then
  local most = math.min(tonumber(ARGV[2]), free_places())
  for _ = 1, most do
    local popped = redis.call('ZPOPMIN', KEYS[1])
    if #popped == 0 then
      break
    end
    local job, priority, owner = string.match(popped[1], '^([^|]*)|([^|]*)|(.*)$')
    local score = tonumber(popped[2])
    if score > tonumber(redis.call('HGET', KEYS[6], 'virtual_now') or 0) then
      redis.call('HSET', KEYS[6], 'virtual_now', int(score))
      redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', int(score))
    end
    waiting(owner, priority, -1)
    redis.call('ZADD', KEYS[3], 0, job)
    taken[#taken + 1] = job
    taken[#taken + 1] = set_due(job, tonumber(ARGV[3]))
  end
  ring_if_claimable()
end
if #taken > 0 then
  redis.call('HSET', KEYS[8], 'number', ARGV[1], 'answer', cjson.encode(taken))
  redis.call('PEXPIRE', KEYS[8], 60000)
end
return taken
