-- Give up the leases that are ours, so that another process may take the accounts at once.
-- KEYS    lease  string  of each account
-- ARGV[1] owner ("<seat> <term>")
-- Returns how many were ours.
local n = 0
for _, key in ipairs(KEYS) do
  if redis.call('GET', key) == ARGV[1] then n = n + redis.call('DEL', key) end
end
return n
