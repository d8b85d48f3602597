-- Set a cursor where there is none, or replace one of another UIDVALIDITY, or one that still stands at a UID that is
-- known to be wrong, or is no number; never move one that is right.
-- KEYS[1] cursor  hash    of the mailbox
-- KEYS[2] stream  stream
-- KEYS[3] lease   string  of the account
-- ARGV    uidvalidity, uid, rescan, group, lease owner ('' for none), history, the wrong uid ('' for none)
-- Creates the consumer group as well: a worker that comes later may find a full Redis, which refuses to create one.
-- Returns {uidvalidity, uid, rescan, history} as they now stand; FENCED as in append.lua.
-- include fence
local fenced = fence(KEYS[3], ARGV[5])
if fenced then return fenced end
redis.pcall('XGROUP', 'CREATE', KEYS[2], ARGV[4], '0', 'MKSTREAM')   -- an error says that it is there
local cur = redis.call('HMGET', KEYS[1], 'uidvalidity', 'uid', 'rescan', 'history')
local whole = cur[2] and true
for i = 2, 4 do whole = whole and (not cur[i] or (#cur[i] < 20 and cur[i]:match('^%d+$'))) end
if cur[1] ~= ARGV[1] or not whole or cur[2] == ARGV[7] then
  redis.call('HSET', KEYS[1], 'uidvalidity', ARGV[1], 'uid', ARGV[2], 'rescan', ARGV[3],
             'history', ARGV[6])
  redis.call('HDEL', KEYS[1], 'modseq')
  return {ARGV[1], ARGV[2], ARGV[3], ARGV[6]}
end
return cur
