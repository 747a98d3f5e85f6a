-- include lib/fence
-- KEYS: client, inbound. ARGV: epoch, packet ids. Returns 1, or false when the epoch is another.
if not fenced() then
  return false
end
for n = 2, #ARGV do
  local value = redis.call('HGET', KEYS[2], ARGV[n])
  if value then
    redis.call('HDEL', KEYS[2], ARGV[n]) -- first, so that it passes when memory is full
    redis.call('HSET', KEYS[2], ARGV[n], '1' .. string.sub(value, 2))
  end
end
return 1
