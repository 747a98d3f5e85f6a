-- Append parcels to an inbox, all or none. KEYS: open (its bytes), inbox
-- ARGV: most parcels, most bytes, the parcels and bytes that must find room (of this call and those after it); then head and body of each
-- Answer: 1; 0 when it is not open, or full
local bytes = redis.call('GET', KEYS[1])
if not bytes or tonumber(bytes) + tonumber(ARGV[4]) > tonumber(ARGV[2]) then
  return 0
end
if redis.call('XLEN', KEYS[2]) + tonumber(ARGV[3]) > tonumber(ARGV[1]) then
  return 0
end
local added = 0
for n = 5, #ARGV, 2 do
  redis.call('XADD', KEYS[2], '*', 'h', ARGV[n], 'b', ARGV[n + 1])
  added = added + #ARGV[n] + #ARGV[n + 1]
end
redis.call('INCRBY', KEYS[1], added)
return 1
