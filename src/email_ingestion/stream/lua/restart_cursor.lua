-- Put a cursor where none is, or replace one of another UIDVALIDITY; never move one that is already right.
-- KEYS: cursor, stream, lease   ARGV: uidvalidity, uid, rescan, group, holder, history
-- Makes the consumer group as well: a worker that comes later may find a full Redis, which refuses to make one.
-- Returns {uidvalidity, uid, rescan, history} as they now stand; FENCED as `append` does.
-- include fence
local fenced = fence(KEYS[3], ARGV[5])
if fenced then return fenced end
redis.pcall('XGROUP', 'CREATE', KEYS[2], ARGV[4], '0', 'MKSTREAM')   -- an error says that it is there
local cur = redis.call('HMGET', KEYS[1], 'uidvalidity', 'uid', 'rescan', 'history')
if cur[1] ~= ARGV[1] or not cur[2] then
  redis.call('HSET', KEYS[1], 'uidvalidity', ARGV[1], 'uid', ARGV[2], 'rescan', ARGV[3],
             'history', ARGV[6])
  redis.call('HDEL', KEYS[1], 'modseq')
  return {ARGV[1], ARGV[2], ARGV[3], ARGV[6]}
end
return cur
