-- Read the next new entries, passing over those that `read_urgent` delivered before their turn: XREADGROUP would take
-- them away from their consumer and forget how often they were tried.
-- KEYS[1] stream  stream
-- ARGV    group, me, limit
-- Returns a list of {id, fields}.
-- include position
local position = position_of(KEYS[1], ARGV[1])
if not position then return redis.error_reply('NOGROUP ' .. ARGV[1]) end
local out = {}
local page = redis.call('XRANGE', KEYS[1], '(' .. position, '+', 'COUNT', ARGV[3])
for _, e in ipairs(page) do
  if #redis.call('XPENDING', KEYS[1], ARGV[1], e[1], e[1], 1) == 0 then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, e[1], 'RETRYCOUNT', 1, 'FORCE', 'JUSTID')
    out[#out + 1] = e
  end
end
if #page > 0 then redis.call('XGROUP', 'SETID', KEYS[1], ARGV[1], page[#page][1]) end
return out
