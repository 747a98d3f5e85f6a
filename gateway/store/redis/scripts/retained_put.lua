-- Keep a retained message. KEYS: HASH topic -> message, ZSET of the topics. ARGV: topic, message, limit. Returns 0 when the limit refuses it, and how many there are.
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
  if redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[3]) then return {0, redis.call('HLEN', KEYS[1])} end
  redis.call('ZADD', KEYS[2], 0, ARGV[1])
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return {1, redis.call('HLEN', KEYS[1])}
