-- use: clock queue
-- Stops a kind's claims, or lets them go on; attempts that run are left alone.
-- ARGV: 1 (pause) | 0 (resume)
if ARGV[1] == '1' then
  redis.call('HSET', KEYS[6], 'paused', '1')
else
  redis.call('HDEL', KEYS[6], 'paused')
  ring_if_claimable()
end
return 1
