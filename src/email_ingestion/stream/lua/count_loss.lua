-- Count one more loss, for every producer to see.
-- KEYS[1] ledger:losses or queue:losses  string
-- Returns how many there were.
-- include count
count(KEYS[1], 1)
return redis.call('GET', KEYS[1])
