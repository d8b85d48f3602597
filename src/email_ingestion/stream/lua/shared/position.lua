-- Return the id of the last entry that was delivered to a group; nil when there is no such group.
local function position_of(stream, name)
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local info = {}
    for i = 1, #group, 2 do info[group[i]] = group[i + 1] end
    if info.name == name then return info['last-delivered-id'] end
  end
end
