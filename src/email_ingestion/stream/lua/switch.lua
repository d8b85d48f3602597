-- Put what was loaded beside the keyspace in its place, in one step.
-- KEYS: the keys that go, then n pairs: loaded, final   ARGV: how many go
local gone = tonumber(ARGV[1])
for i = 1, gone do redis.call('UNLINK', KEYS[i]) end
for i = gone + 1, #KEYS, 2 do redis.call('RENAME', KEYS[i], KEYS[i + 1]) end
return (#KEYS - gone) / 2
