-- Make pending entries due at once for any consumer, each only while it is still that consumer's.
-- KEYS[1] stream  stream
-- ARGV    group, idle time to set (ms), then id, consumer of each entry
-- The count of deliveries stays: an entry that killed a worker before is still handled alone.
-- Returns how many were still that consumer's.
local n = 0
for i = 3, #ARGV, 2 do
  local p = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[i + 1])[1]
  if p then
    redis.call('XCLAIM', KEYS[1], ARGV[1], p[2], 0, p[1], 'IDLE', ARGV[2], 'RETRYCOUNT', p[4], 'JUSTID')
    n = n + 1
  end
end
return n
