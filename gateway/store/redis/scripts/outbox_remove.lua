-- include lib/counts
-- KEYS: outbox, counts. ARGV: positions. Returns the counts.
local removed = 0
for n = 1, #ARGV do
  removed = removed + redis.call('ZREMRANGEBYSCORE', KEYS[1], ARGV[n], ARGV[n])
end
if removed > 0 then
  redis.call('HINCRBY', KEYS[2], 'outbox', -removed)
end
return counts_of(KEYS[2])
