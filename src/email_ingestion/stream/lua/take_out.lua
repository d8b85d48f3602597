-- Take entries out of the stream whoever has them, because they are safe in a file.
-- KEYS: stream, volume, priority   ARGV: group, then id, bytes, id, bytes, ...
-- A worker that has one is told, when it is done, that the entry is no longer its own. Starts with XACK, so that a full
-- Redis lets itself be drained.
-- Returns how many there still were.
local n, freed = 0, 0
for i = 2, #ARGV, 2 do
  redis.pcall('XACK', KEYS[1], ARGV[1], ARGV[i])   -- an error says that there is no group
  if redis.call('XDEL', KEYS[1], ARGV[i]) == 1 then
    redis.call('ZREM', KEYS[3], ARGV[i])
    n = n + 1
    freed = freed + tonumber(ARGV[i + 1])
  end
end
if freed > 0 then redis.call('DECRBY', KEYS[2], freed) end
return n
