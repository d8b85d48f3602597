-- Append a batch of messages and move the cursor, both or neither; a resend adds nothing.
-- KEYS: stream, cursor, volume, lease, priority
-- ARGV: uidvalidity, from, upto, holder, end, n, then n entries under their UIDs
--   `end` is which end of the cursor moves: 'uid' upwards with new mail (UIDs ascending), or 'history' downwards with
--   what was there before (UIDs descending). `from` is where the batch found it, `upto` the last UID the batch accounts
--   for (the last ones may be skipped).
-- Returns {entries added, cursor, bytes added}. STALECURSOR when the cursor is gone, behind `from` (Redis was restored:
-- moving on would leave a hole), or of another UIDVALIDITY; FENCED when there is a `holder` and the lease is not his: he
-- was away for so long that somebody else reads the account, or may. Nothing is written then.
-- include rank
-- include entry
-- include fence
local fenced = fence(KEYS[4], ARGV[4])
if fenced then return fenced end
local cur = redis.call('HMGET', KEYS[2], 'uidvalidity', ARGV[5])
local last, from, upto = tonumber(cur[2]), tonumber(ARGV[2]), tonumber(ARGV[3])
local function beyond(a, b)
  if ARGV[5] == 'history' then return a < b end
  return a > b
end
if not last or cur[1] ~= ARGV[1] or beyond(from, last) then
  return redis.error_reply('STALECURSOR it is at ' .. tostring(cur[1]) .. '/' .. tostring(cur[2]))
end
local p, added, bytes = 7, 0, 0
for _ = 1, tonumber(ARGV[6]) do
  local uid, command, size, following = entry(p, KEYS[1])
  if beyond(tonumber(uid), last) then
    rank(KEYS[5], redis.call(unpack(command)), command)
    added, bytes = added + 1, bytes + size
  end
  p = following
end
if bytes > 0 then redis.call('INCRBY', KEYS[3], bytes) end
if beyond(upto, last) then
  redis.call('HSET', KEYS[2], ARGV[5], upto)
  last = upto
end
return {added, last, bytes}
