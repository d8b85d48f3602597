-- Delete entries from the stream whichever consumer has them, because they are safe in a file.
-- KEYS[1] stream    stream
-- KEYS[2] volume    string
-- KEYS[3] priority  zset
-- ARGV    group, then id, bytes of the fields of each entry
-- A worker that has one learns at its ack that the entry is no longer its own. Starts with XACK, so that a full Redis
-- can be drained.
-- Returns how many still existed.
-- include count
redis.call('ZSCORE', KEYS[3], '')  -- fails before anything is written where it is no zset
local n, freed = 0, 0
for i = 2, #ARGV, 2 do
  redis.pcall('XACK', KEYS[1], ARGV[1], ARGV[i])   -- an error says that there is no group
  if redis.call('XDEL', KEYS[1], ARGV[i]) == 1 then
    redis.call('ZREM', KEYS[3], ARGV[i])
    n = n + 1
    freed = freed + tonumber(ARGV[i + 1])
  end
end
if freed > 0 then count(KEYS[2], -freed) end
return n
