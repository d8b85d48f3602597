-- Remove a consumer from the group, only while nothing is pending under its name and its process is not alive: XGROUP
-- DELCONSUMER drops pending entries, which would never be delivered again.
-- KEYS[1] stream  stream
-- KEYS[2] alive   string  presence of the consumer's process
-- ARGV    group, consumer
-- Returns 1, 0 when it has pending entries or is alive, -1 when it does not exist (any more).
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local info = {}
  for i = 1, #consumer, 2 do info[consumer[i]] = consumer[i + 1] end
  if info.name == ARGV[2] then
    if info.pending > 0 then return 0 end
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
    return 1
  end
end
return -1
