-- Leave an entry to a consumer that no process is: it stays pending for a lease, and this delivery was no attempt.
-- KEYS[1] stream  stream
-- ARGV    group, me, name of that consumer, id
-- Returns whether it was still mine.
local e = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[4], ARGV[4], 1, ARGV[2])
if #e == 0 then return 0 end
local count = math.max(0, e[1][4] - 1)
redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[3], 0, ARGV[4], 'IDLE', 0, 'RETRYCOUNT', count, 'JUSTID')
return 1
