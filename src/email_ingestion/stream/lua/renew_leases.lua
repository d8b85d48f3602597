-- Take the leases that are free, or were left by an earlier life of this seat, and renew those that are ours.
-- KEYS    lease  string  "<seat> <term>" of each account's owner, expires
-- ARGV    seat, term, life (ms)
-- One process at a time sits in a seat, so another term of it belongs to a dead process.
-- DEL comes before SET, though it deletes nothing that matters: a script whose first write is allowed over the memory
-- limit may do its other writes too.
-- Returns for each account: '' when it is ours, else its owner.
local mine, out = ARGV[1] .. ' ' .. ARGV[2], {}
for i, key in ipairs(KEYS) do
  local holder = redis.call('GET', key)
  out[i] = ''
  if holder == mine then
    redis.call('PEXPIRE', key, ARGV[3])
  elseif holder and holder:sub(1, #ARGV[1] + 1) ~= ARGV[1] .. ' ' then
    out[i] = holder
  else
    redis.call('DEL', key)
    redis.call('SET', key, mine, 'PX', ARGV[3])
  end
end
return out
