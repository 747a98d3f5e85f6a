-- Store a body, for n more references. KEYS: the body's HASH: "b" -> the body, and for each call that put references to it, by the call's
-- number, how many of these are left. ARGV: the call's number, n, body, seconds that it lives at most.
redis.call('HSETNX', KEYS[1], 'b', ARGV[3])
redis.call('HINCRBY', KEYS[1], ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[4])
return 1
