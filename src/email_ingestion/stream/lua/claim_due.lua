-- Claim pending entries that are due: my own after their back-off, those of others after the lease as well.
-- KEYS[1] stream    stream
-- KEYS[2] priority  zset
-- ARGV    group, me, lease (ms), limit, least priority, name of the consumer for a newer release, version we read,
--         then back-off (ms) after 1, 2, 3, ... deliveries
-- An entry that was delivered and not given back is a suspect: it may have killed its worker, so it is claimed alone.
-- Entries given back untouched (count 0) are claimed together. The jitter comes from the entry's own id.
-- Entries below the least priority are left as they are: for later, or for a worker that takes all.
-- Those left to a newer release are looked at once in a lease, and stay there unless we are that release.
-- Returns a list of {id, deliveries with this one, fields, 1 if it was another consumer's}.
local out, start, looked = {}, '-', 0
local lease, limit, min_priority = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local NORMAL = -5
local function due(id, owner, idle, count)
  local wait = 0
  if count > 0 then
    local ms = tonumber(id:match('^(%d+)'))
    wait = tonumber(ARGV[math.min(7 + count, #ARGV)]) * (0.75 + (ms % 64) / 128)
  end
  if owner ~= ARGV[2] then wait = math.max(wait, lease) end
  return idle >= wait
end
local function urgent(id)
  return min_priority <= 0 or tonumber(redis.call('ZSCORE', KEYS[2], id) or NORMAL) <= -min_priority
end
local function left(id, owner)
  if owner ~= ARGV[6] then return false end
  looked = looked + 1
  if looked > limit then return true end
  local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
  for i = 1, entry and #entry[2] or 0, 2 do
    if entry[2][i] == 'v' and (tonumber(entry[2][i + 1]) or 0) > tonumber(ARGV[7]) then
      redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[6], 0, id, 'IDLE', 0, 'JUSTID')
      return true
    end
  end
  return false
end
while true do
  local page = redis.call('XPENDING', KEYS[1], ARGV[1], start, '+', 500)
  for _, e in ipairs(page) do
    local id, owner, idle, count = e[1], e[2], e[3], e[4]
    if due(id, owner, idle, count) and (count == 0 or #out == 0) and urgent(id) and not left(id, owner) then
      local got = redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, id)
      if got[1] then
        out[#out + 1] = {id, count + 1, got[1][2], owner == ARGV[2] and 0 or 1}
        if count > 0 or #out >= limit then return out end
      else
        redis.call('XACK', KEYS[1], ARGV[1], id)   -- its payload is gone: nothing is left to deliver
      end
    end
  end
  if #page < 500 then return out end
  start = '(' .. page[#page][1]
end
