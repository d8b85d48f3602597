-- Compare the counted bytes with those of the stream: what is counted beyond left the stream, and nobody took it.
-- KEYS[1] stream  stream  mail on its way
-- KEYS[2] volume  string  bytes of payload in the stream
-- ARGV[1] 1 to count anew what is there, 0 to look only
-- ARGV[2] the most entries that are counted: of a longer stream nothing is told
-- A person's XTRIM, DEL or XDEL does that, or Redis itself under an eviction policy.
-- Returns those bytes, 0 where there are none or the stream is longer.
if redis.call('XLEN', KEYS[1]) > tonumber(ARGV[2]) then return 0 end
local there, start = 0, '-'
repeat
  local page = redis.call('XRANGE', KEYS[1], start, '+', 'COUNT', 10)
  for _, entry in ipairs(page) do
    for _, part in ipairs(entry[2]) do there = there + #part end
    start = '(' .. entry[1]
  end
until #page < 10
local counted = redis.pcall('GET', KEYS[2])
local bytes = (type(counted) == 'string' and tonumber(counted) or 0) - there
if bytes ~= 0 and ARGV[1] == '1' then redis.call('SET', KEYS[2], there) end
return math.max(bytes, 0)
