-- Read one page of the pending entries: consumer, times, deliveries, and which message each one is.
-- KEYS[1] stream  stream
-- ARGV    group, least idle time (ms), first id, limit, consumer ('' for all)
-- Returns {id, consumer, idle (ms), deliveries, account, gm_msgid, sha256, bytes of the fields, age (ms)} for each
-- entry; bytes are -1 where the payload is gone, the age is that of the id.
local command = {'XPENDING', KEYS[1], ARGV[1], 'IDLE', ARGV[2], ARGV[3], '+', ARGV[4]}
if ARGV[5] ~= '' then command[#command + 1] = ARGV[5] end
local NAMES = {account = 5, gm_msgid = 6, sha256 = 7}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local out = {}
for _, p in ipairs(redis.call(unpack(command))) do
  local row = {p[1], p[2], p[3], p[4], '', '', '', -1, math.max(0, now - tonumber(string.match(p[1], '%d+')))}
  local entry = redis.call('XRANGE', KEYS[1], p[1], p[1])[1]
  if entry then
    row[8] = 0
    for i = 1, #entry[2], 2 do
      local at = NAMES[entry[2][i]]
      if at then row[at] = entry[2][i + 1] end
      row[8] = row[8] + #entry[2][i] + #entry[2][i + 1]
    end
  end
  out[#out + 1] = row
end
return out
