-- Read the state of all keys at one instant, without the entries of streams: they may be many and are read after it.
-- KEYS    every key of a partition
-- Reads only, so it passes when Redis is over its memory limit.
-- Returns {now (ms), list of {type, time to live (ms, negative: for ever), value}}; the value of a stream is
-- {last id, entries added, greatest deleted id, list of {group, last delivered id, list of {id, consumer, idle (ms),
--  deliveries}, entries read or nothing}}.
local function of(flat)
  local named = {}
  for i = 1, #flat, 2 do named[flat[i]] = flat[i + 1] end
  return named
end
local function stream(key)
  local info, groups = of(redis.call('XINFO', 'STREAM', key)), {}
  for _, flat in ipairs(redis.call('XINFO', 'GROUPS', key)) do
    local group = of(flat)
    local pending = redis.call('XPENDING', key, group['name'], '-', '+', 1000000)
    groups[#groups + 1] = {group['name'], group['last-delivered-id'], pending, group['entries-read']}
  end
  return {info['last-generated-id'], info['entries-added'], info['max-deleted-entry-id'], groups}
end
local read = {
  string = function(key) return redis.call('GET', key) end,
  hash = function(key) return redis.call('HGETALL', key) end,
  list = function(key) return redis.call('LRANGE', key, 0, -1) end,
  set = function(key) return redis.call('SMEMBERS', key) end,
  zset = function(key) return redis.call('ZRANGE', key, 0, -1, 'WITHSCORES') end,
  stream = stream,
}
local out, time = {}, redis.call('TIME')
for i, key in ipairs(KEYS) do
  local kind = redis.call('TYPE', key)['ok']
  local value = read[kind] and read[kind](key) or false
  out[i] = {kind, redis.call('PTTL', key), value}
end
return {time[1] * 1000 + math.floor(time[2] / 1000), out}
