-- Write a stream anew, for Redis keeps the bytes of a deleted entry as long as another one is in the same node.
-- KEYS[1] stream             stream  any of ours
-- KEYS[2] restoring:rebuilt  stream  the new one, only during this call
-- Ids, counters, groups, consumers and pending entries are those that it had. Nothing else runs meanwhile; every key is
-- as it was when memory is short.
-- Returns the number of entries.
local function of(flat)
  local named = {}
  for i = 1, #flat, 2 do named[flat[i]] = flat[i + 1] end
  return named
end
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local info, n, start = of(redis.call('XINFO', 'STREAM', KEYS[1])), 0, '-'
if info['last-generated-id'] == '0-0' then return 0 end
redis.call('UNLINK', KEYS[2])
redis.call('XGROUP', 'CREATE', KEYS[2], 'nobody', '0', 'MKSTREAM')
redis.call('XGROUP', 'DESTROY', KEYS[2], 'nobody')
repeat
  local page = redis.call('XRANGE', KEYS[1], start, '+', 'COUNT', 10)
  for _, e in ipairs(page) do
    redis.call('XADD', KEYS[2], e[1], unpack(e[2]))
    n, start = n + 1, '(' .. e[1]
  end
until #page < 10
redis.call('XSETID', KEYS[2], info['last-generated-id'], 'ENTRIESADDED', info['entries-added'],
           'MAXDELETEDID', info['max-deleted-entry-id'])
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group = of(flat)
  local create = {'XGROUP', 'CREATE', KEYS[2], group['name'], group['last-delivered-id']}
  if group['entries-read'] then
    create[#create + 1] = 'ENTRIESREAD'
    create[#create + 1] = group['entries-read']
  end
  redis.call(unpack(create))
  for _, one in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], group['name'])) do
    redis.call('XGROUP', 'CREATECONSUMER', KEYS[2], group['name'], of(one)['name'])
  end
  local from = '-'
  repeat
    local page = redis.call('XPENDING', KEYS[1], group['name'], from, '+', 500)
    for _, p in ipairs(page) do
      redis.call('XCLAIM', KEYS[2], group['name'], p[2], 0, p[1], 'IDLE', p[3], 'RETRYCOUNT', p[4], 'FORCE', 'JUSTID')
      from = '(' .. p[1]
    end
  until #page < 500
end
redis.call('RENAME', KEYS[2], KEYS[1])
return n
