-- include lib/queue
-- Remove the oldest references of a shard. ARGV: none that came later than this, how many at most.
-- Returns the counts, how many were removed, the order of the oldest that is left or less ("" for none), and the places of bodies to free.
local bound, most = tonumber(ARGV[1]), tonumber(ARGV[2])
local freed, next_order = {}, ''
local removed, steps = 0, 0
while true do
  local oldest = redis.call('ZRANGE', heads, 0, 0, 'WITHSCORES')
  if #oldest == 0 then break end
  next_order = oldest[2]
  steps = steps + 1
  if tonumber(oldest[2]) > bound or removed >= most or steps > 2000 then break end
  local q = queue_of(oldest[1])
  local ref = q.length > 0 and redis.call('LINDEX', q.key, 0)
  while ref and order_of(ref) <= tonumber(oldest[2]) and removed < most do
    take(q, score(q.next - q.length), ref, freed, false)
    removed = removed + 1
    ref = q.length > 0 and redis.call('LINDEX', q.key, 0)
  end
  if ref then
    redis.call('ZADD', heads, score(order_of(ref)), oldest[1])
  else
    redis.call('ZREM', heads, oldest[1])
  end
  next_order = ''
end
return {counts_of(counts), removed, next_order, freed}
