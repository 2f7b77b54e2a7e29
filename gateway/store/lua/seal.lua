-- Writes down where an upload's parts stand joined. Whoever comes first counts: several gateways may join them at once.
-- KEYS: upload, parts. ARGV: blob, digest
-- Returns: blob, digest | unknown
if redis.call('EXISTS', KEYS[1]) == 0 then
  return { 'unknown' }
end
if redis.call('HSETNX', KEYS[1], 'blob', ARGV[1]) == 1 then
  redis.call('HSET', KEYS[1], 'sha256', ARGV[2])
  redis.call('DEL', KEYS[2])
end
return redis.call('HMGET', KEYS[1], 'blob', 'sha256')
