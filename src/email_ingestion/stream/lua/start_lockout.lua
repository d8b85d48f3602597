-- Note that a mail server has locked an account out: for twice as long as the last time, if that was within a day.
-- KEYS[1] lockout  hash  until, seconds
-- ARGV    now (Unix seconds), shortest time, longest time (seconds)
-- One that still holds is left as it is: several connections learn of it at once.
-- Returns until when, as text.
local now, shortest, longest = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local cur = redis.call('HMGET', KEYS[1], 'until', 'seconds')
local ends, before = tonumber(cur[1] or nil), tonumber(cur[2] or nil)   -- nil, or far away, where others wrote
if ends and ends > now and ends <= now + longest then return cur[1] end
local seconds = before and before > 0 and before <= longest and math.min(before * 2, longest) or shortest
local till = string.format('%.3f', now + seconds)
redis.call('HSET', KEYS[1], 'until', till, 'seconds', seconds)
redis.call('EXPIREAT', KEYS[1], math.ceil(now + seconds + longest))
return till
