-- include lib/cluster_head
-- Removes, then adds listeners of one parent topic.
-- KEYS: head, shapes, log, then the hash of a filter for each change
-- ARGV: length of the prefix of these hashes' names, most entries of the log, its seconds, number of removals; then for each removal member
-- and shape, for each addition member, value and shape
-- Answer: the head
local head, shapes, log = KEYS[1], KEYS[2], KEYS[3]
local prefix, removals = tonumber(ARGV[1]), tonumber(ARGV[4])
local changed, reshaped = {}, false
local arg = 4
for n = 4, #KEYS do
  local key, member, shape = KEYS[n], ARGV[arg + 1], nil
  if n - 3 <= removals then
    shape = ARGV[arg + 2]
    arg = arg + 2
    if redis.call('HDEL', key, member) == 1 then
      changed[#changed + 1] = string.sub(key, prefix + 1)
      if redis.call('EXISTS', key) == 0 and redis.call('HINCRBY', shapes, shape, -1) <= 0 then
        redis.call('HDEL', shapes, shape)
        reshaped = true
      end
    end
  else
    local value = ARGV[arg + 2]
    shape = ARGV[arg + 3]
    arg = arg + 3
    local before = redis.call('HGET', key, member)
    if before ~= value then
      redis.call('HSET', key, member, value)
      changed[#changed + 1] = string.sub(key, prefix + 1)
      if not before and redis.call('HLEN', key) == 1 and redis.call('HINCRBY', shapes, shape, 1) == 1 then
        reshaped = true
      end
    end
  end
end
local version, shaped, wide, widened = head_of(head)
local widening = not wide and #KEYS - 3 > removals
if #changed == 0 and not widening then
  return packed_head(version, shaped, wide, widened)
end
if version == 0 then
  -- by the clock (us), so that versions go on growing when Redis has lost everything: whoever remembers an older one is told to forget it
  local now = redis.call('TIME')
  version = tonumber(now[1]) * 1000000 + tonumber(now[2])
  widened = version
end
if #changed > 0 then
  version = version + #changed
  redis.call('RPUSH', log, unpack(changed))
  redis.call('LTRIM', log, -tonumber(ARGV[2]), -1)
  redis.call('EXPIRE', log, ARGV[3])
  if reshaped then
    shaped = version
  end
end
if widening then
  wide, widened = true, widened + 1
end
local now = packed_head(version, shaped, wide, widened)
redis.call('SET', head, now)
return now
