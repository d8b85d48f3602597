-- Append messages that were found missing; no cursor is moved.
-- KEYS[1] stream    stream
-- KEYS[2] volume    string
-- KEYS[3] priority  zset
-- KEYS[4] lease     string  of the account
-- ARGV[1] last entry id that the caller has searched itself, '-' for none
-- ARGV[2] lease owner, '' for none
-- ARGV[3] number of entries, then the entries under their identities (shared/entry.lua)
-- Entries after that id are searched here: a message that another process appended meanwhile, or this very call whose
-- answer was lost, is not appended again.
-- Returns how many were added; FENCED as in append.lua.
-- include rank
-- include entry
-- include fence
-- include count
local fenced = fence(KEYS[4], ARGV[2])
if fenced then return fenced end
local there, start = {}, ARGV[1] == '-' and '-' or '(' .. ARGV[1]
repeat
  local entries = redis.call('XRANGE', KEYS[1], start, '+', 'COUNT', 10)
  for _, entry in ipairs(entries) do
    local of, fields = {}, entry[2]
    for i = 1, #fields, 2 do of[fields[i]] = fields[i + 1] end
    local account, gm = of['account'] or '', of['gm_msgid'] or ''
    there[account .. (gm ~= '' and ':gm:' .. gm or ':sha256:' .. (of['sha256'] or ''))] = true
    start = '(' .. entry[1]
  end
until #entries < 10
redis.call('ZSCORE', KEYS[3], '')  -- fails before anything is written where it is no zset
local p, added, bytes = 4, 0, 0
for _ = 1, tonumber(ARGV[3]) do
  local identity, command, size, following = entry(p, KEYS[1])
  if not there[identity] then
    rank(KEYS[3], redis.call(unpack(command)), command)
    there[identity] = true
    added, bytes = added + 1, bytes + size
  end
  p = following
end
if bytes > 0 then count(KEYS[2], bytes) end
return added
