-- Take entries out of the stream because they are in the sinks, each only while it is still mine.
-- KEYS: stream, volume, priority   ARGV: group, me, then id, bytes, id, bytes, ...
-- Starts with XACK, so that it passes when Redis is over its memory limit: the queue must be able to drain.
-- Returns 1 or 0 for each: 0 means that somebody took it over meanwhile.
local out, freed, ranked = {}, 0, redis.call('EXISTS', KEYS[3]) == 1
for i = 3, #ARGV, 2 do
  local id = ARGV[i]
  if #redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1, ARGV[2]) == 1 then
    redis.call('XACK', KEYS[1], ARGV[1], id)
    redis.call('XDEL', KEYS[1], id)
    if ranked then redis.call('ZREM', KEYS[3], id) end
    freed = freed + tonumber(ARGV[i + 1])
    out[#out + 1] = 1
  else
    out[#out + 1] = 0
  end
end
if freed > 0 then redis.call('DECRBY', KEYS[2], freed) end
return out
