-- Forget the clock of a client that has no session since a moment. KEYS: client, gone. ARGV: client id, moment (ms)
local gone = redis.call('ZSCORE', KEYS[2], ARGV[1])
if gone and tonumber(gone) <= tonumber(ARGV[2]) then
  redis.call('ZREM', KEYS[2], ARGV[1])
  local row = redis.call('HMGET', KEYS[1], 'kind', 'node')
  if row[1] == '0' and (row[2] or '') == '' then
    redis.call('DEL', KEYS[1])
  end
end
return 1
