-- Add the entry `id`, made by the command `entry`, to the index `key` if its priority is not the normal one.
local function rank(key, id, entry)
  for i = 4, #entry, 2 do
    local priority = entry[i] == 'priority' and tonumber(entry[i + 1])
    if priority then redis.call('ZADD', key, -priority, id) end
  end
end
