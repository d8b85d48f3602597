-- Find out which of the commands that the processes use are refused to this user, before a script does half of its work.
-- KEYS[1] probe  a key that does not exist
-- Nothing is written: each call is one that has no effect, or an error, where there is no such key.
-- Returns the names of the refused commands, and the text of the first refusal.
local k = KEYS[1]
local calls = {
  {'XACK', k, 'g', '0-1'}, {'XADD', k, 'NOMKSTREAM', '*', 'f', ''}, {'XCLAIM', k, 'g', 'me', 0, '0-1'},
  {'XDEL', k, '0-1'}, {'XLEN', k}, {'XPENDING', k, 'g'}, {'XRANGE', k, '-', '+'}, {'XREVRANGE', k, '+', '-'},
  {'XREADGROUP', 'GROUP', 'g', 'me', 'STREAMS', k, '>'},
  {'XGROUP', 'CREATE', k, 'g', '0'}, {'XGROUP', 'DELCONSUMER', k, 'g', 'me'}, {'XINFO', 'STREAM', k},
  {'XINFO', 'GROUPS', k}, {'GET', k}, {'MGET', k}, {'SET', k, '', 'XX'}, {'DEL', k}, {'EXISTS', k},
  {'INCRBY', k, 'x'}, {'DECRBY', k, 'x'}, {'EXPIRE', k, 1}, {'EXPIREAT', k, 1}, {'PEXPIRE', k, 1}, {'PEXPIREAT', k, 1},
  {'HGET', k, 'f'}, {'HMGET', k, 'f'}, {'HGETALL', k}, {'HKEYS', k}, {'HDEL', k, 'f'}, {'HSET', k, 'f', 'v', 'g'},
  {'HINCRBY', k, 'f', 'x'}, {'ZADD', k, 'XX', 1, 'm'}, {'ZREM', k, 'm'}, {'ZSCORE', k, 'm'}, {'ZCOUNT', k, 1, 1},
  {'ZRANGEBYSCORE', k, 1, 1}, {'TIME'},
}
local refused, first = {}, ''
for _, call in ipairs(calls) do
  local answer = redis.pcall(unpack(call))
  local text = type(answer) == 'table' and answer['err'] or ''
  if text:find('NOPERM') or text:find('ACL failure') or text:find("can't run this command")
     or text:find("can't access") or text:find('no permissions') or text:lower():find('unknown .*command called')
     or text:lower():find('unknown command') then
    local sub = (call[1] == 'XGROUP' or call[1] == 'XINFO') and ' ' .. call[2] or ''
    refused[#refused + 1] = call[1] .. sub
    if first == '' then first = text end
  end
end
return {refused, first}
