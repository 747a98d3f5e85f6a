-- include lib/queue
-- ARGV: client, name of a message; and so on. They are remembered no longer. Returns the counts.
for i = 1, #ARGV, 2 do
  local key = shard .. 'rem:' .. ARGV[i]
  if redis.call('HDEL', key, ARGV[i + 1]) == 1 then
    redis.call('HINCRBY', counts, 'remembered', -1)
    if redis.call('EXISTS', key) == 0 then redis.call('SREM', keepers, ARGV[i]) end
  end
end
return counts_of(counts)
