-- include lib/counts
-- include lib/waiting
-- One client and all that is stored of it. KEYS: Keys.session(client id).
local CLIENT, WILL, SUBSCRIPTIONS, INBOUND = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local QUEUE, FLIGHT, IDS, REMEMBERED = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local COUNTS, OUTBOX, LEFT, GONE, SUBSCRIBED, ON = KEYS[9], KEYS[10], KEYS[11], KEYS[12], KEYS[13], KEYS[14]
local NONE, CLEAN, PERSISTENT = 0, 1, 2 -- kinds, as in keys.py

-- The client's hash; epoch 0 when there is none.
local function read_client(id)
  local row = redis.call('HMGET', CLIENT, 'epoch', 'node', 'channel', 'ip', 'kind', 'time', 'seq')
  return {
    id = id, epoch = tonumber(row[1] or 0), node = row[2] or '', channel = row[3] or '', ip = row[4] or '',
    kind = tonumber(row[5] or NONE), time = tonumber(row[6] or 0), seq = tonumber(row[7] or 0),
  }
end

local function next_number()
  return redis.call('HINCRBY', COUNTS, 'position', 1)
end

-- An item is "<position>:<length of the client id>:<E or W><client id><event or will>", packed as packed.py does.
local function append(client, kind, payload)
  local position = next_number()
  redis.call('ZADD', OUTBOX, position, string.format('%.0f:%d:%s', position, #client.id, kind) .. client.id .. payload)
  redis.call('HINCRBY', COUNTS, 'outbox', 1)
end

-- Times of one client grow strictly whatever the clock did: readers order its connections by them.
local function emit(client, id, type, now, reason, node)
  client.time = math.max(now, client.time + 1)
  client.seq = client.seq + 1
  append(client, 'E', cjson.encode({id, type, client.time, client.seq, client.channel, client.ip, reason, node}))
end

local function emit_will(client)
  local will = redis.call('GET', WILL)
  if will then
    append(client, 'W', will)
  end
end

-- Delete all that is stored of the session; the hash stays, since it keeps the clock of the client's events.
-- Returns the filters it had, flat with their values.
local function forget_session(client)
  local filters = redis.call('HGETALL', SUBSCRIPTIONS)
  if #filters > 0 then
    redis.call('HINCRBY', COUNTS, 'subscriptions', -#filters / 2)
    redis.call('SREM', SUBSCRIBED, client.id)
  end
  redis.call('DEL', SUBSCRIPTIONS, INBOUND)
  forget_waiting()
  return filters
end

-- The first write of a script decides what a Redis with full memory does: after one that needs no memory it lets all the others pass, and
-- before one that does it refuses. So an end of a connection begins with this, and a claim with a number.
local function part(client)
  redis.call('SREM', ON .. client.node, client.id)
end

-- After `part`: its `tcpclean`, its will if that is due, and a clean session with it.
local function leave(client, id, now, reason, node, with_will)
  emit(client, id, 'tcpclean', now, reason, node)
  if with_will then
    emit_will(client)
  end
  redis.call('DEL', WILL)
  local kind = client.kind
  if kind == CLEAN then
    forget_session(client)
    kind = NONE
  end
  redis.call('ZADD', kind == NONE and GONE or LEFT, now, client.id)
  redis.call('HSET', CLIENT, 'node', '', 'kind', kind, 'time', client.time, 'seq', client.seq, 'left', now)
end

