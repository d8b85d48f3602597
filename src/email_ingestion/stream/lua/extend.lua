-- Keep entries pending under my name and restart their idle time: a heartbeat, or the start of a back-off.
-- KEYS[1] stream  stream
-- ARGV    group, me, deliveries to take back (0 or 1), then ids
-- A delivery is taken back when the entry was not touched: this was no attempt.
-- Returns the ids that are still mine.
local mine = {}
for i = 4, #ARGV do
  local e = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])
  if #e == 1 then
    local count = math.max(0, e[1][4] - tonumber(ARGV[3]))
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'IDLE', 0, 'RETRYCOUNT', count, 'JUSTID')
    mine[#mine + 1] = ARGV[i]
  end
end
return mine
