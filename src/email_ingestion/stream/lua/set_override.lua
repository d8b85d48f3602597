-- Set an operators' override for all processes, or clear it; what has ended or cannot be read is removed on the way.
-- KEYS[1] control  hash  override by name: JSON {ends_ms, value, by}; expires
-- ARGV    name, seconds (0: clear it), value, by
-- Ends are by Redis' clock, so that readers need not agree with the clock of the process that sets it.
-- Returns the latest end (ms).
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
redis.call('HDEL', KEYS[1], ARGV[1])
if tonumber(ARGV[2]) > 0 then
  local ends = string.format('%.0f', now + tonumber(ARGV[2]) * 1000)
  redis.call('HSET', KEYS[1], ARGV[1], cjson.encode({ends_ms = ends, value = ARGV[3], by = ARGV[4]}))
end
local last, fields = 0, redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local readable, found = pcall(cjson.decode, fields[i + 1])
  local ends = readable and type(found) == 'table' and tonumber(found.ends_ms) or 0
  if ends <= now then redis.call('HDEL', KEYS[1], fields[i]) end
  last = math.max(last, ends)
end
if last > now then redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', last)) end
return last
