-- Return the error for a writer that does not own the lease `key`, or nil; without an `owner` nothing is checked.
local function fence(key, owner)
  if owner == '' then return nil end
  local current = redis.call('GET', key)
  if current ~= owner then return redis.error_reply('FENCED ' .. (current or '')) end
end
