-- Put keys that were loaded next to the keyspace in the place of the present ones, in one step.
-- KEYS    the keys to delete, then n pairs: loaded, final
-- ARGV[1] how many to delete
-- Returns the number of keys put in place.
local gone = tonumber(ARGV[1])
for i = 1, gone do redis.call('UNLINK', KEYS[i]) end
for i = gone + 1, #KEYS, 2 do redis.call('RENAME', KEYS[i], KEYS[i + 1]) end
return (#KEYS - gone) / 2
