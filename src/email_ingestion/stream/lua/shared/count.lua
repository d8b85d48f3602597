-- Add `bytes`, which may be negative, to the counter `key`. One that is no number begins anew: an error here would
-- come after entries were written or removed.
local function count(key, bytes)
  local counted = redis.pcall('INCRBY', key, bytes)
  if type(counted) == 'table' and counted.err then redis.call('SET', key, math.max(bytes, 0)) end
end
