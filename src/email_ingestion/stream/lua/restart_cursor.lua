-- Put a cursor where none is, or replace one of another UIDVALIDITY; never move one that is already right.
-- KEYS: cursor   ARGV: uidvalidity, uid, rescan
-- Returns {uidvalidity, uid, rescan} as they now stand.
local cur = redis.call('HMGET', KEYS[1], 'uidvalidity', 'uid', 'rescan')
if cur[1] ~= ARGV[1] or not cur[2] then
  redis.call('HSET', KEYS[1], 'uidvalidity', ARGV[1], 'uid', ARGV[2], 'rescan', ARGV[3])
  return {ARGV[1], ARGV[2], ARGV[3]}
end
return cur
