-- include lib/queue
-- What waits for one client, as the registry sees it. Used inside lib/session; KEYS[1] is the client's hash.
local waiting_client = string.sub(KEYS[1], #shard + 3) -- after "c:"
local MOST_FREED = 1000 -- references of a deleted queue whose bodies are freed one by one; of more, Redis would be held up

local freed = {} -- what the bodies of a deleted queue are found by (bodies.free)

-- Delete everything, with the session. Of a queue with more than MOST_FREED elements the bodies are left to their own expiry.
local function forget_waiting()
  local q = queue_of(waiting_client)
  if q.length <= MOST_FREED then
    for _, element in ipairs(redis.call('LRANGE', q.key, 0, -1)) do
      if not struck(element) then
        local _, _, place = parts(element)
        if place ~= '' then freed[#freed + 1] = place end
      end
    end
  end
  local known = shard .. 'rem:' .. waiting_client
  for field, key in pairs({offline = q.ids, remembered = known}) do
    local rows = redis.call('HLEN', key)
    if rows > 0 then redis.call('HINCRBY', counts, field, -rows) end -- not -0, which is no integer
  end
  redis.call('UNLINK', q.key, q.flight, q.ids, known)
  redis.call('SREM', keepers, waiting_client)
  redis.call('ZREM', heads, waiting_client)
  redis.call('ZREM', ages, ':' .. waiting_client)
  if q.next - 1 > (tonumber(redis.call('HGET', counts, 'floor') or 0)) then
    redis.call('HSET', counts, 'floor', score(q.next - 1)) -- no position is ever given again
  end
  redis.call('HDEL', KEYS[1], 'next', 'peak')
end

-- How many were never sent.
local function count_backlog()
  local q = queue_of(waiting_client)
  return redis.call('HLEN', q.ids) - math.max(0, redis.call('HLEN', q.flight) - 1)
end

-- What was sent and is not finished: position, "<packet id>:<phase>:<order of sending>" and reference of each.
local function rows_in_flight()
  local q = queue_of(waiting_client)
  local found = redis.call('HGETALL', q.flight)
  local rows = {}
  for i = 1, #found, 2 do
    if found[i] ~= 'n' then
      rows[#rows + 1] = found[i]
      rows[#rows + 1] = found[i + 1]
      rows[#rows + 1] = reference(q, tonumber(found[i]))
    end
  end
  return rows
end
