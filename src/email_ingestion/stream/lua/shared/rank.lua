-- Note in the index `key` the entry `id` of the stream, made by the command `entry`, if it has a priority of its own.
local function rank(key, id, entry)
  for i = 4, #entry, 2 do
    local priority = entry[i] == 'priority' and tonumber(entry[i + 1])
    if priority then redis.call('ZADD', key, -priority, id) end
  end
end
