-- include lib/cluster_member
-- Raise the lease of node ARGV[1]; ARGV[2]: "serving", or nothing. KEYS: members. Answer: 1; 0 when it is lost or gone
local beats, lost = member_of(KEYS[1], ARGV[1])
if lost ~= '0' then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f 0 ', tonumber(beats) + 1) .. ARGV[2])
return 1
