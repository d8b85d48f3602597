-- Read the new entry that starts at ARGV[p]: its name, the number of field names, these (0: as before), the values.
-- Returns its name, the command that adds it to `stream`, the bytes of its fields, and where the next one starts.
local shape = {}
local function entry(p, stream)
  local names, at = tonumber(ARGV[p + 1]), p + 2
  if names > 0 then
    shape = {}
    for i = 1, names do shape[i] = ARGV[at + i - 1] end
    at = at + names
  end
  local command, bytes = {'XADD', stream, '*'}, 0
  for i, field in ipairs(shape) do
    local value = ARGV[at + i - 1]
    command[2 * i + 2], command[2 * i + 3] = field, value
    bytes = bytes + #field + #value
  end
  return ARGV[p], command, bytes, at + #shape
end
