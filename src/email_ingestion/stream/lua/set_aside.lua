-- Move a key away that is of another type than belongs there, in one step: another process may just have done so.
-- KEYS[1] the key
-- KEYS[2] where it is moved; what is there is replaced
-- ARGV[1] the type that belongs there
-- Returns 1 if it was moved, else 0.
local kind = redis.call('TYPE', KEYS[1])['ok']
if kind == ARGV[1] or kind == 'none' then return 0 end
redis.call('RENAME', KEYS[1], KEYS[2])
return 1
