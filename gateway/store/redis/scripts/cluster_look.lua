-- include lib/cluster_head
-- What has changed in the index of one parent topic.
-- KEYS: head, shapes, log, then the hashes of the filters that are asked for; ARGV: since
-- Answer: head, changed filters (nil: too many), shapes (nil: unchanged), then number (from 0) and content of each hash that is there
local version, shaped, wide, widened = head_of(KEYS[1])
local since = tonumber(ARGV[1])
local changed, shapes = {}, false
if version ~= since or since == 0 then
  local n = version - since
  if since == 0 or n < 0 or n > redis.call('LLEN', KEYS[3]) then
    changed = false
  else
    changed = redis.call('LRANGE', KEYS[3], -n, -1)
  end
  if not changed or shaped > since then
    shapes = redis.call('HKEYS', KEYS[2])
  end
end
local answer = { packed_head(version, shaped, wide, widened), changed, shapes }
for n = 4, #KEYS do
  local listed = redis.call('HGETALL', KEYS[n])
  if #listed > 0 then
    answer[#answer + 1] = n - 4
    answer[#answer + 1] = listed
  end
end
return answer
