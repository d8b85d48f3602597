-- The id of the last entry of a stream that a group has come to; nil when there is no such group.
local function position_of(stream, name)
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local said = {}
    for i = 1, #group, 2 do said[group[i]] = group[i + 1] end
    if said.name == name then return said['last-delivered-id'] end
  end
end
