-- use: clock queue
-- Takes the entries that somebody must look at now; each gets a new score, which is the look's token.
-- ARGV: how many, look again after ms (if this looker dies)
-- Returns: a flat list of job, token
local taken = {}
for _, job in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', int(now_ms()), 'LIMIT', 0, tonumber(ARGV[1]))) do
  taken[#taken + 1] = job
  taken[#taken + 1] = set_due(job, tonumber(ARGV[2]))
end
return taken
