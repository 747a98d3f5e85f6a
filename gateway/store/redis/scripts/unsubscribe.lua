-- include lib/fence
-- KEYS: client, counts, subscriptions, subscribed. ARGV: epoch, client id, then filters
-- Returns the counts, or false when the epoch is another.
if not fenced() then
  return false
end
local removed = 0
for n = 3, #ARGV do
  removed = removed + redis.call('HDEL', KEYS[3], ARGV[n])
end
if removed > 0 then
  redis.call('HINCRBY', KEYS[2], 'subscriptions', -removed)
  if redis.call('EXISTS', KEYS[3]) == 0 then
    redis.call('SREM', KEYS[4], ARGV[2])
  end
end
return counts_of(KEYS[2])
