-- Read new entries of a high priority before their turn, the highest first, and of one priority the oldest.
-- KEYS[1] stream    stream
-- KEYS[2] priority  zset
-- ARGV    group, me, limit, least priority
-- The group has not come to these entries: `read_around_urgent` passes over them when it does.
-- Returns {1 if such entries are in flight or wait for another attempt, list of {id, fields}}.
local out, start, held = {}, 0, 0
while true do
  local page = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', -tonumber(ARGV[4]), 'LIMIT', start, 500)
  for _, id in ipairs(page) do
    if #redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1) > 0 then
      held = 1
    else
      local got = redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, id, 'RETRYCOUNT', 1, 'FORCE')
      if got[1] then
        out[#out + 1] = got[1]
        if #out >= tonumber(ARGV[3]) then return {1, out} end
      else
        redis.call('ZREM', KEYS[2], id)   -- the entry was deleted
        start = start - 1
      end
    end
  end
  if #page < 500 then return {held, out} end
  start = start + 500
end
