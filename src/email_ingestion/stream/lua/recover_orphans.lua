-- Make entries pending that are behind the group's position and pending under no name: a power cut can lose the record
-- of their delivery and keep the position, and then no consumer would ever get them.
-- KEYS[1] stream  stream
-- ARGV    group, me, lease (ms), first id
-- They are marked as given back untouched, so that any consumer may claim them.
-- Returns how many there were on this page, and the id to continue from unless it was the last.
-- include position
if redis.call('XLEN', KEYS[1]) <= redis.call('XPENDING', KEYS[1], ARGV[1])[1] then return {0} end
local position = position_of(KEYS[1], ARGV[1])
local page = redis.call('XRANGE', KEYS[1], ARGV[4], position, 'COUNT', 100)
local n = 0
for _, e in ipairs(page) do
  if #redis.call('XPENDING', KEYS[1], ARGV[1], e[1], e[1], 1) == 0 then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, e[1], 'IDLE', ARGV[3], 'RETRYCOUNT', 0, 'FORCE', 'JUSTID')
    n = n + 1
  end
end
if #page < 100 then return {n} end
return {n, '(' .. page[#page][1]}
