-- A member: "<beats> <lost: 0 or 1> <heir>"; nil when there is none
local function member_of(key, node)
  return string.match(redis.call('HGET', key, node) or '', '^(%d+) (%d) (.*)$')
end
