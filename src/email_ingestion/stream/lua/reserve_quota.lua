-- Count bytes towards an account's daily download quota, unless it is used up.
-- KEYS[1] budget  hash  bytes by hour since the epoch
-- ARGV    hour since the epoch, bytes, limit (0: count them in any case)
-- The hours that count are this one and the 24 before it: a little more than a day, never less.
-- Returns {1 or 0, bytes of the last day}.
local hour, size, limit, today = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), 0
local hours = redis.call('HGETALL', KEYS[1])
for i = 1, #hours, 2 do
  local used = #hours[i + 1] < 17 and hours[i + 1]:match('^-?%d+$')
  if not used or #hours[i] > 9 or not hours[i]:match('^%d+$') or tonumber(hours[i]) < hour - 24 then
    redis.call('HDEL', KEYS[1], hours[i])   -- over, or nothing that was written here
  else
    today = today + tonumber(used)
  end
end
if limit > 0 and today >= limit then return {0, today} end
if size ~= 0 then
  redis.call('HINCRBY', KEYS[1], hour, size)
  redis.call('EXPIRE', KEYS[1], 25 * 3600)
end
return {1, math.max(0, today + size)}
