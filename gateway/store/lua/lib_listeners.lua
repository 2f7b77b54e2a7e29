-- Whether anybody listens to a job that is to be cancelled when nobody does. 5 listeners: who -> when the mark ends.

-- Where Redis was away, nobody could say that he listens: whoever did has so long to come back, if his grace is longer.
local RETURN_MS = 60000

-- Milliseconds until nobody has listened for `grace`, counted from the submit for a job that nobody ever listened to.
-- `within_reach`: for how long the one who asks has been able to reach Redis.
local function alone_after(now, grace, created, within_reach)
  local newest = redis.call('ZREVRANGE', KEYS[5], 0, 0, 'WITHSCORES')
  local left = math.max(created, tonumber(newest[2] or 0)) + grace - now
  left = math.max(left, math.min(grace, RETURN_MS) - within_reach)
  -- A mark may be taken back: looked at again after one grace, a job is never late by more.
  return math.min(left, grace)
end
