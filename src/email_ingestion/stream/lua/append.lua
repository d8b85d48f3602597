-- Append a batch of messages and move the cursor, both or neither; a repetition adds nothing.
-- KEYS[1] stream    stream
-- KEYS[2] cursor    hash    of the mailbox
-- KEYS[3] volume    string
-- KEYS[4] lease     string  of the account
-- KEYS[5] priority  zset
-- ARGV[1] uidvalidity
-- ARGV[2] the position at which the batch found the cursor
-- ARGV[3] last UID that the batch accounts for (the last ones may be skipped)
-- ARGV[4] lease owner, '' for none
-- ARGV[5] the end of the cursor to move: 'uid' upwards with new mail (UIDs ascending), or 'history' downwards with
--         older mail (UIDs descending)
-- ARGV[6] number of entries, then the entries under their UIDs (shared/entry.lua)
-- Returns {entries added, cursor, bytes added}. STALECURSOR when the cursor is missing, behind ARGV[2] (Redis was
-- restored: moving on would leave a hole), or of another UIDVALIDITY; FENCED when the lease has another owner: this
-- process was away for so long that another one reads the account, or may. Nothing is written then.
-- include rank
-- include entry
-- include fence
-- include count
local fenced = fence(KEYS[4], ARGV[4])
if fenced then return fenced end
local cur = redis.call('HMGET', KEYS[2], 'uidvalidity', ARGV[5])
local last, from, last_uid = tonumber(cur[2]), tonumber(ARGV[2]), tonumber(ARGV[3])
local function beyond(a, b)
  if ARGV[5] == 'history' then return a < b end
  return a > b
end
if not last or cur[1] ~= ARGV[1] or beyond(from, last) then
  return redis.error_reply('STALECURSOR it is at ' .. tostring(cur[1]) .. '/' .. tostring(cur[2]))
end
redis.call('ZSCORE', KEYS[5], '')  -- fails before anything is written where it is no zset
local p, added, bytes = 7, 0, 0
for _ = 1, tonumber(ARGV[6]) do
  local uid, command, size, following = entry(p, KEYS[1])
  if beyond(tonumber(uid), last) then
    rank(KEYS[5], redis.call(unpack(command)), command)
    added, bytes = added + 1, bytes + size
  end
  p = following
end
if bytes > 0 then count(KEYS[3], bytes) end
if beyond(last_uid, last) then
  redis.call('HSET', KEYS[2], ARGV[5], last_uid)
  last = last_uid
end
return {added, last, bytes}
