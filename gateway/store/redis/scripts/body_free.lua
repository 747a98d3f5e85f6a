-- n references of some calls are gone, or were never put; without any left the body goes. KEYS: as body_put.
-- ARGV: call's number, n, and the number of a call that has to be known ("" for none); and so on.
for i = 1, #ARGV, 3 do
  local known = ARGV[i + 2] == '' or redis.call('HEXISTS', KEYS[1], ARGV[i + 2]) == 1
  if known and redis.call('HINCRBY', KEYS[1], ARGV[i], -ARGV[i + 1]) <= 0 then
    redis.call('HDEL', KEYS[1], ARGV[i]) -- also when the call was not known
  end
end
if redis.call('HLEN', KEYS[1]) == 1 then redis.call('DEL', KEYS[1]) end
return 1
