-- Give entries back so that any consumer may claim them at once: this process stops.
-- KEYS[1] stream  stream
-- ARGV    group, me, lease (ms), then ids
-- The delivery is taken back and the idle time set to the lease.
-- Returns how many were still mine.
local n = 0
for i = 4, #ARGV do
  local e = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])
  if #e == 1 then
    local count = math.max(0, e[1][4] - 1)
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'IDLE', ARGV[3], 'RETRYCOUNT', count, 'JUSTID')
    n = n + 1
  end
end
return n
