-- Take a consumer out of the group, only while it holds nothing and its process does not live: XGROUP DELCONSUMER
-- drops what is pending, and nobody would ever be given it again.
-- KEYS: stream, the consumer's presence   ARGV: group, consumer
-- Returns 1, 0 when it holds something or lives, -1 when it is not there any more.
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local said = {}
  for i = 1, #consumer, 2 do said[consumer[i]] = consumer[i + 1] end
  if said.name == ARGV[2] then
    if said.pending > 0 then return 0 end
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
    return 1
  end
end
return -1
