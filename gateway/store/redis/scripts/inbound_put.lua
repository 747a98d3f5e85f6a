-- include lib/fence
-- KEYS: client, inbound. ARGV: epoch, packet id, UNIQ_KEY. Returns 1, or false when the epoch is another.
if not fenced() then
  return false
end
redis.call('HSET', KEYS[2], ARGV[2], '0' .. ARGV[3])
return 1
