-- Append messages that were found missing, beside the cursor, which is not moved.
-- KEYS: stream, volume, priority, lease
-- ARGV: last id the caller has seen ('-': none), holder, n, then n times: identity, number of fields, name, value, ...
-- What came into the stream after that id is looked at here: a message that somebody else appended meanwhile, or this
-- very call whose answer was lost, is not appended again.
-- Returns how many were added; FENCED as `append` does.
-- include rank
-- include fence
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
local p, added, bytes = 4, 0, 0
for _ = 1, tonumber(ARGV[3]) do
  local identity, n = ARGV[p], tonumber(ARGV[p + 1])
  if not there[identity] then
    local entry = {'XADD', KEYS[1], '*'}
    for i = p + 2, p + 1 + n * 2 do
      entry[#entry + 1] = ARGV[i]
      bytes = bytes + #ARGV[i]
    end
    rank(KEYS[3], redis.call(unpack(entry)), entry)
    there[identity] = true
    added = added + 1
  end
  p = p + 2 + n * 2
end
if bytes > 0 then redis.call('INCRBY', KEYS[2], bytes) end
return added
