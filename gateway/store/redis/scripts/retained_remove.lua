-- KEYS: as retained_put. ARGV: topic. Returns 1, and how many there are.
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return {1, redis.call('HLEN', KEYS[1])}
