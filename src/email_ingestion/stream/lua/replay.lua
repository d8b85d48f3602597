-- Put dead letters back into the stream, each only while it still exists: a repetition adds nothing.
-- KEYS[1] stream    stream
-- KEYS[2] volume    string
-- KEYS[3] dlq       stream
-- KEYS[4] replayed  string  how many dead letters were ever replayed
-- KEYS[5] priority  zset
-- ARGV    ids
-- An entry gets its own fields again, how often it was replayed, and the dead letter it comes from; the dead_ fields
-- are left behind. Each dead letter is finished before the next is touched, and XADD comes first: Redis over its
-- memory limit refuses the whole call and every dead letter stays.
-- Returns how many were replayed.
-- include rank
-- include count
redis.call('ZSCORE', KEYS[5], '')  -- fails before anything is written where it is no zset
local moved = 0
for _, id in ipairs(ARGV) do
  local letter = redis.call('XRANGE', KEYS[3], id, id)[1]
  if letter then
    local entry, fields, replays, bytes = {'XADD', KEYS[1], '*'}, letter[2], 0, 0
    for i = 1, #fields, 2 do
      local name = fields[i]
      if name == 'replays' then
        replays = tonumber(fields[i + 1]) or 0
      elseif name ~= 'replay_of' and name:sub(1, 5) ~= 'dead_' then
        entry[#entry + 1] = name
        entry[#entry + 1] = fields[i + 1]
      end
    end
    for _, v in ipairs({'replays', string.format('%d', replays + 1), 'replay_of', id}) do entry[#entry + 1] = v end
    for i = 4, #entry do bytes = bytes + #entry[i] end
    rank(KEYS[5], redis.call(unpack(entry)), entry)
    redis.call('XDEL', KEYS[3], id)
    count(KEYS[2], bytes)
    count(KEYS[4], 1)
    moved = moved + 1
  end
end
return moved
