-- Acknowledge entries and delete them from the stream, each only while it is still pending under my name.
-- KEYS[1] stream    stream  mail on its way
-- KEYS[2] volume    string  bytes of payload in the stream
-- KEYS[3] priority  zset    ids of entries whose priority is not the normal one
-- ARGV    group, me, then for each entry: id, bytes of its fields
-- Starts with XACK, so that it passes when Redis is over its memory limit: the queue must be able to drain.
-- Returns 1 or 0 for each entry: 0 when another consumer claimed it meanwhile.
-- include count
local out, freed, ranked = {}, 0, redis.call('EXISTS', KEYS[3]) == 1
if ranked then redis.call('ZSCORE', KEYS[3], '') end  -- fails before anything is written where it is no zset
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
if freed > 0 then count(KEYS[2], -freed) end
return out
