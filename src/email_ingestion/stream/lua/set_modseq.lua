-- Store beside the cursor the MODSEQ up to which changes of labels have been taken over.
-- KEYS[1] cursor  hash    of the mailbox
-- KEYS[2] lease   string  of the account
-- ARGV    uidvalidity, modseq (as text: its 63 bits are too many for a Lua number), lease owner ('' for none)
-- STALECURSOR when the cursor is missing or of another UIDVALIDITY, FENCED as in append.lua. Nothing is written then.
-- include fence
local fenced = fence(KEYS[2], ARGV[3])
if fenced then return fenced end
local uidvalidity = redis.call('HGET', KEYS[1], 'uidvalidity')
if uidvalidity ~= ARGV[1] then return redis.error_reply('STALECURSOR it is of ' .. tostring(uidvalidity)) end
redis.call('HSET', KEYS[1], 'modseq', ARGV[2])
return 1
