-- include lib/queue
-- Remove references that were stored up to a moment. ARGV: that moment (ms), how many at most.
-- Returns the counts, how many were removed, 1 if there may be more, and the places of bodies to free.
local bound, most = tonumber(ARGV[1]), tonumber(ARGV[2])
local freed, more = {}, 0
local removed, steps = 0, 0
while true do
  local oldest = redis.call('ZRANGEBYSCORE', ages, '-inf', ARGV[1], 'LIMIT', 0, 1)
  if #oldest == 0 then break end
  if removed >= most or steps >= most then
    more = 1
    break
  end
  steps = steps + 1
  local late, client = string.match(oldest[1], '^(%d*):(.*)$')
  local q = queue_of(client)
  if late ~= '' then
    local ref = reference(q, tonumber(late))
    redis.call('ZREM', ages, oldest[1])
    if ref and stored_at(ref) <= bound then
      take(q, late, ref, freed, false)
      removed = removed + 1
    end
  else
    local ref = q.length > 0 and redis.call('LINDEX', q.key, 0)
    while ref and stored_at(ref) <= bound and removed < most do
      take(q, score(q.next - q.length), ref, freed, false)
      removed = removed + 1
      ref = q.length > 0 and redis.call('LINDEX', q.key, 0)
    end
    if ref then
      redis.call('ZADD', ages, stored_at(ref), oldest[1])
    else
      redis.call('ZREM', ages, oldest[1])
    end
  end
end
return {counts_of(counts), removed, more, freed}
