-- Store the number of partitions that mail is spread over, unless that was done before; no stored number means one.
-- KEYS[1] partitions  string
-- KEYS[2] stream      stream
-- KEYS[3] dlq         stream
-- ARGV[1] the caller's number
-- Returns the number that holds.
local fixed = redis.call('GET', KEYS[1])
if fixed then return fixed end
if ARGV[1] == '1' or redis.call('EXISTS', KEYS[2], KEYS[3]) > 0 then return '1' end
redis.call('SET', KEYS[1], ARGV[1])
return ARGV[1]
