-- Put off the end of a node's keys. KEYS: open, its other keys; ARGV: seconds. Answer: 1; 0 when its inbox is not open
for n = 2, #KEYS do
  redis.call('EXPIRE', KEYS[n], ARGV[1])
end
return redis.call('EXPIRE', KEYS[1], ARGV[1])
