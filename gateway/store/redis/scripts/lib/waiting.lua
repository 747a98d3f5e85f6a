-- What waits for one client, as the registry sees it. Used inside lib/session, with KEYS as there: 5 queue, 6 flight, 7 ids, 8 remembered, 9 counts.

-- Free everything, with the session.
local function forget_waiting()
  redis.call('HINCRBY', KEYS[9], 'offline', -redis.call('HLEN', KEYS[7]))
  redis.call('HINCRBY', KEYS[9], 'remembered', -redis.call('HLEN', KEYS[8]))
  redis.call('DEL', KEYS[5], KEYS[6], KEYS[7], KEYS[8])
end

-- How many were never sent.
local function count_backlog()
  return redis.call('HLEN', KEYS[7]) - redis.call('HLEN', KEYS[6])
end

