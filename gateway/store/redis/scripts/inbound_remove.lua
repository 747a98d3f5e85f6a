-- include lib/fence
-- KEYS: client, inbound. ARGV: epoch, packet id. Returns 1, or false when the epoch is another.
if not fenced() then
  return false
end
redis.call('HDEL', KEYS[2], ARGV[2])
return 1
