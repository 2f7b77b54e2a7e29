-- Whether anybody listens to a job that is to be cancelled when nobody does. 5 listeners: who -> when the mark ends.

-- Milliseconds until nobody has listened for `grace`, counted from the submit for a job that nobody ever listened to.
local function alone_after(now, grace, created)
  local newest = redis.call('ZREVRANGE', KEYS[5], 0, 0, 'WITHSCORES')
  local left = math.max(created, tonumber(newest[2] or 0)) + grace - now
  -- A mark may be taken back: looked at again after one grace, a job is never late by more.
  return math.min(left, grace)
end
