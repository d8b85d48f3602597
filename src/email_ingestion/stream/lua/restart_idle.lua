-- After Redis' clock went back, restart the idle time of entries that were delivered in what is now the future.
-- KEYS[1] stream  stream
-- ARGV[1] group
-- Their idle time reads 0 and would do so until the clock is there again. Delivery counts and consumers stay.
local start = '-'
while true do
  local page = redis.call('XPENDING', KEYS[1], ARGV[1], start, '+', 500)
  for _, e in ipairs(page) do
    if e[3] == 0 then
      redis.call('XCLAIM', KEYS[1], ARGV[1], e[2], 0, e[1], 'IDLE', 0, 'RETRYCOUNT', e[4], 'JUSTID')
    end
  end
  if #page < 500 then return end
  start = '(' .. page[#page][1]
end
