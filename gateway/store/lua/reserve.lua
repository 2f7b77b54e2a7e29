-- use: clock queue
-- First step of a submit: is there room, and from now on somebody looks whether the submit was finished.
-- ARGV: job, owner, most waiting of the kind, most waiting of the owner, look after ms, most waiting of a key's users
-- Returns: ok | kind_full | owner_full | users_full
local job, owner = ARGV[1], ARGV[2]
if redis.call('ZSCORE', KEYS[2], job) then
  return 'ok'
end
if tonumber(redis.call('HGET', KEYS[7], '*') or 0) >= tonumber(ARGV[3]) then
  return 'kind_full'
end
if tonumber(redis.call('HGET', KEYS[7], owner) or 0) >= tonumber(ARGV[4]) then
  return 'owner_full'
end
local users = users_of(owner)
if users and tonumber(redis.call('HGET', KEYS[7], users) or 0) >= tonumber(ARGV[6]) then
  return 'users_full'
end
set_due(job, tonumber(ARGV[5]))
return 'ok'
