-- Fix into how many partitions mail is spread, unless that was done before; one is the number where none is noted.
-- KEYS: partitions, stream, dlq   ARGV: the caller's number
-- Returns the number that holds.
local fixed = redis.call('GET', KEYS[1])
if fixed then return fixed end
if ARGV[1] == '1' or redis.call('EXISTS', KEYS[2], KEYS[3]) > 0 then return '1' end
redis.call('SET', KEYS[1], ARGV[1])
return ARGV[1]
