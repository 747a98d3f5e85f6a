-- include lib/cluster_member
-- Declare node ARGV[1] lost if its lease stands at ARGV[2], or if it is lost and its heir is no living member; heir: ARGV[3].
-- KEYS: members. Answer: 1; 0 when somebody else was first or it lives. The heir itself may say it again: it does not know how the first
-- time ended when its connection failed.
local beats, lost, heir = member_of(KEYS[1], ARGV[1])
if not beats or (lost == '0' and beats ~= ARGV[2]) then
  return 0
end
if lost == '1' and heir ~= ARGV[3] then
  local _, gone = member_of(KEYS[1], heir)
  if gone == '0' then
    return 0
  end
end
redis.call('HSET', KEYS[1], ARGV[1], beats .. ' 1 ' .. ARGV[3])
return 1
