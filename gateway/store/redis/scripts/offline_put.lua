-- include lib/queue
-- Append or update entries of one shard's clients, as `Store.offline_put`.
-- ARGV: how far (ms) stored_at may step back before a reference is a late one; then for each entry client, reference, and
-- "epoch:packet id:phase:position", or "" for one that has none of these.
-- Returns the counts, and for each entry: its position (0 not put, -1 no session), the owner, and when it waits already what its body is found by.
local slack = tonumber(ARGV[1])
local queues, results, added = {}, {}, 0

local function opened(client)
  local row = redis.call('HMGET', shard .. 'c:' .. client, 'kind', 'epoch', 'node', 'next', 'peak')
  local q = {}
  if row[1] == '2' then
    q = queue_of(client, row[4])
    q.owner = row[3] or ''
    q.epoch = row[2]
    q.peak = q.length > 0 and tonumber(row[5] or nil) or 0
    q.first = q.next
    q.knows = redis.call('EXISTS', shard .. 'rem:' .. client) == 1
  end
  queues[client] = q
  return q
end

local function note_age(q, ref)
  local stored = stored_at(ref)
  if q.length == 0 then
    redis.call('ZADD', heads, score(order_of(ref)), q.client)
    redis.call('ZADD', ages, stored, ':' .. q.client)
    q.peak = stored
  elseif stored > q.peak then
    q.peak = stored
  elseif stored < q.peak - slack then
    redis.call('ZADD', ages, stored, score(q.next) .. ':' .. q.client)
  end
end

-- The position, and the place of the body of the one that waits already. epoch: '0', or the session's: then one that was sent just so was
-- put by a call whose answer was lost.
local function append(q, ref, packet_id, phase, epoch)
  local name = name_of(ref)
  if q.knows and redis.call('HEXISTS', shard .. 'rem:' .. q.client, name) == 1 then return 0, '' end
  if redis.call('HSETNX', q.ids, name, score(q.next)) == 0 then
    local at = tonumber(redis.call('HGET', q.ids, name))
    local waits = reference(q, at)
    if waits then
      local _, _, place = parts(waits)
      if epoch ~= '0' and phase ~= '0' then
        local state, same = redis.call('HGET', q.flight, at), packet_id .. ':' .. phase .. ':'
        if state and string.sub(state, 1, #same) == same then return at, place end
      end
      return 0, place
    end
    redis.call('HSET', q.ids, name, score(q.next)) -- never so unless somebody else wrote into these keys
  end
  note_age(q, ref)
  redis.call('RPUSH', q.key, ref)
  local position = q.next
  q.length = q.length + 1
  q.next = position + 1
  if phase ~= '0' then sent(q, position, packet_id, phase) end
  added = added + 1
  return position, ''
end

local function update(q, position, packet_id, phase)
  if not reference(q, position) then return 0 end
  if phase == '0' then unsent(q, position) else sent(q, position, packet_id, phase) end
  return position
end

for i = 2, #ARGV, 3 do
  local q = queues[ARGV[i]] or opened(ARGV[i])
  local position, place = -1, ''
  if q.key then
    local epoch, packet_id, phase, at = '0', '0', '0', 0
    if ARGV[i + 2] ~= '' then
      epoch, packet_id, phase, at = string.match(ARGV[i + 2], '(%d+):(%d+):(%d+):(%d+)')
      at = tonumber(at)
    end
    local late = epoch ~= '0' and epoch ~= q.epoch -- of a connection that has been taken over: its packet ids mean nothing now
    if at ~= 0 then
      position = late and 0 or update(q, at, packet_id, phase)
    elseif late then
      position, place = append(q, ARGV[i + 1], '0', '0', '0')
    else
      position, place = append(q, ARGV[i + 1], packet_id, phase, epoch)
    end
  end
  results[#results + 1] = position
  results[#results + 1] = q.owner or ''
  results[#results + 1] = place
end

for client, q in pairs(queues) do
  if q.key and q.next ~= q.first then redis.call('HSET', shard .. 'c:' .. client, 'next', score(q.next), 'peak', score(q.peak)) end
end
if added > 0 then redis.call('HINCRBY', counts, 'offline', added) end
return {counts_of(counts), results}
