-- include lib/fence
-- KEYS: client, counts, subscriptions, subscribed. ARGV: epoch, client id, then filter and "<qos>:<since>" of each
-- Returns the counts, or false when the epoch is another.
if not fenced() then
  return false
end
local added = 0
for n = 3, #ARGV, 2 do
  added = added + redis.call('HSET', KEYS[3], ARGV[n], ARGV[n + 1])
end
if added > 0 then
  redis.call('SADD', KEYS[4], ARGV[2])
  redis.call('HINCRBY', KEYS[2], 'subscriptions', added)
end
return counts_of(KEYS[2])
