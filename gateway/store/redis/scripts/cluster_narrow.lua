-- include lib/cluster_head
-- Turn a parent topic narrow when nobody listens and its wide version is still ARGV[1]. KEYS: head, shapes. Answer: the head
local version, shaped, wide, widened = head_of(KEYS[1])
if wide and widened == tonumber(ARGV[1]) and redis.call('EXISTS', KEYS[2]) == 0 then
  wide, widened = false, widened + 1
  redis.call('SET', KEYS[1], packed_head(version, shaped, wide, widened))
end
return packed_head(version, shaped, wide, widened)
