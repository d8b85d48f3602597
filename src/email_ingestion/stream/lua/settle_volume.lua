-- Compare the counted bytes with an empty stream: what is counted then left the stream, and nobody took it.
-- KEYS[1] stream  stream  mail on its way
-- KEYS[2] volume  string  bytes of payload in the stream
-- ARGV[1] 1 to begin to count anew, 0 to look only
-- A person's XTRIM, DEL or XDEL does that, or Redis itself under an eviction policy.
-- Returns those bytes, 0 where there are none or the stream has entries.
if redis.call('XLEN', KEYS[1]) > 0 then return 0 end
local counted = redis.pcall('GET', KEYS[2])
local bytes = type(counted) == 'string' and tonumber(counted) or 0
if bytes ~= 0 and ARGV[1] == '1' then redis.call('SET', KEYS[2], 0) end
return math.max(bytes, 0)
