-- Read one page of a stream's entries without their payloads.
-- KEYS[1] stream  stream  mail or dead letters
-- ARGV    first id ('-', or '(' and an id), limit of entries, limit of bytes
-- XRANGE copies payloads into the script, so it reads a few at a time: a page ends at its bytes, not only at its
-- count, and Redis serves others soon.
-- Returns {last id read, or nothing at the end, list of {id, account, mailbox, uidvalidity, uid, gm_msgid, sha256,
-- raw_ref, internaldate}}; a field that an entry does not have is ''.
local NAMES = {account = 2, mailbox = 3, uidvalidity = 4, uid = 5, gm_msgid = 6, sha256 = 7, raw_ref = 8, internaldate = 9}
local out, start, bytes, last = {}, ARGV[1], 0, false
local limit, limit_bytes = tonumber(ARGV[2]), tonumber(ARGV[3])
repeat
  local entries = redis.call('XRANGE', KEYS[1], start, '+', 'COUNT', 10)
  for _, entry in ipairs(entries) do
    local row, fields = {entry[1], '', '', '', '', '', '', '', ''}, entry[2]
    for i = 1, #fields, 2 do
      local at = NAMES[fields[i]]
      if at then row[at] = fields[i + 1] end
      bytes = bytes + #fields[i + 1]
    end
    out[#out + 1] = row
    last = entry[1]
    start = '(' .. last
  end
until #entries < 10 or #out >= limit or bytes >= limit_bytes
return {last, out}
