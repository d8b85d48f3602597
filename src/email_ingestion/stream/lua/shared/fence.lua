-- The error for a writer who does not hold the lease `key`, or nil; without a `holder` nobody asks.
local function fence(key, holder)
  if holder == '' then return nil end
  local held = redis.call('GET', key)
  if held ~= holder then return redis.error_reply('FENCED ' .. (held or '')) end
end
