-- Move an entry to the dead letters, only while it is still pending under my name.
-- KEYS[1] stream    stream
-- KEYS[2] volume    string
-- KEYS[3] dlq       stream  dead letters
-- KEYS[4] priority  zset
-- ARGV    group, me, id, bytes of its fields, then name, value, ... of the dead_ fields
-- The XACK of an id that does not exist comes first: a script whose first write is allowed over the memory limit may
-- do its other writes too, and poison must be able to leave a full Redis.
-- Returns the id of the dead letter, or nothing when another consumer claimed the entry or its payload is gone.
-- include count
local e = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2])
if #e == 0 then return false end
redis.call('ZSCORE', KEYS[4], '')  -- fails before anything is written where it is no zset
redis.call('XACK', KEYS[1], ARGV[1], '0-1')
local entry = redis.call('XRANGE', KEYS[1], ARGV[3], ARGV[3])
local dead = false
if entry[1] then
  local letter = {'XADD', KEYS[3], '*'}
  for _, v in ipairs(entry[1][2]) do letter[#letter + 1] = v end
  for i = 5, #ARGV do letter[#letter + 1] = ARGV[i] end
  dead = redis.call(unpack(letter))
  redis.call('XDEL', KEYS[1], ARGV[3])
  redis.call('ZREM', KEYS[4], ARGV[3])
  count(KEYS[2], -tonumber(ARGV[4]))
end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
return dead
