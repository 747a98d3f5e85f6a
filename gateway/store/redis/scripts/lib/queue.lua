-- include lib/counts
-- One client's queue: a LIST of references (bodies.py has their layout). KEYS[1] is any key of the client's shard.
--
-- Position p is the element with index p - (next - LLEN); `next`, in the client's hash, is the next position to be given. An element in the
-- middle can't be taken out without moving the others, so it is struck out: it becomes a number. A run of n struck elements has n at its
-- lowest place and -n at its highest (a run of one: 1), so that whoever walks jumps over it; other places of a run say nothing to rely on.
-- The first element is never a struck one. A reference begins with a byte over 127, a number never does.
local shard = string.match(KEYS[1], '^[^{]*{%d+}:')
local counts = shard .. 'counts'
local heads = shard .. 'heads'    -- ZSET: client by the order of its oldest reference, or less
local ages = shard .. 'ages'      -- ZSET: ":" client by stored_at of its oldest reference, or less; position ":" client of late ones
local keepers = shard .. 'keepers' -- SET: clients with remembered UNIQ_KEYs

local INLINE, RAW, SOURCE = 8, 16, 32

local function number_at(text, from, to)
  local value = 0
  for i = from, to do value = value * 256 + string.byte(text, i) end
  return value
end

local function struck(element) return string.byte(element) < 128 end

local function stored_at(ref) return number_at(ref, 2, 7) end

local function order_of(ref) return number_at(ref, 8, 14) + number_at(ref, 15, 17) end

local function score(value) return string.format('%.0f', value) end

-- The message's name, and where its source would begin.
local function name_of(ref)
  local flags = string.byte(ref)
  local at = bit.band(flags, INLINE) ~= 0 and 18 or 26
  local from = at
  if bit.band(flags, SOURCE) ~= 0 then from = at + 2 + number_at(ref, at, at + 1) end
  if bit.band(flags, RAW) ~= 0 then return string.sub(ref, from, from + 15), at end
  return string.sub(ref, from + 2, from + 1 + number_at(ref, from, from + 1)), at
end

-- The name, the source ('' for none), and what its body is found by ('' when it is inline): bodies.Place.
local function parts(ref)
  local flags = string.byte(ref)
  local name, at = name_of(ref)
  local source, place = '', ''
  if bit.band(flags, SOURCE) ~= 0 then source = string.sub(ref, at + 2, at + 1 + number_at(ref, at, at + 1)) end
  if bit.band(flags, INLINE) == 0 then place = string.sub(ref, 8, 14) .. string.sub(ref, 18, 25) .. name end
  return name, source, place
end

-- The queue as it is; `floor` in the shard's counts is the last position of any session that was deleted.
local function queue_of(client, next)
  local q = {client = client, key = shard .. 'q:' .. client, ids = shard .. 'ids:' .. client, flight = shard .. 'fl:' .. client}
  if next == nil then next = redis.call('HGET', shard .. 'c:' .. client, 'next') end
  q.next = tonumber(next or nil)
  if q.next then
    q.length = redis.call('LLEN', q.key)
  else
    q.next = (tonumber(redis.call('HGET', counts, 'floor') or nil) or 0) + 1
    q.length = 0
  end
  return q
end

local function index_of(q, position) return position - q.next + q.length end

-- The reference at this position, or nil.
local function reference(q, position)
  local index = index_of(q, position)
  if index < 0 or index >= q.length then return nil end
  local element = redis.call('LINDEX', q.key, index)
  if struck(element) then return nil end
  return element
end

local function strike(q, index)
  local low, high = index, index
  local around = redis.call('LRANGE', q.key, math.max(index - 1, 0), index + 1)
  if index > 0 and struck(around[1]) then low = index - math.abs(tonumber(around[1])) end
  if index < q.length - 1 and struck(around[#around]) then high = index + math.abs(tonumber(around[#around])) end
  local run = high - low + 1
  if low == 0 then
    redis.call('LTRIM', q.key, run, -1)
    q.length = q.length - run
    return
  end
  redis.call('LSET', q.key, low, run)
  if high > low then redis.call('LSET', q.key, high, -run) end
  if index > low and index < high then redis.call('LSET', q.key, index, 0) end
end

local function unsent(q, position)
  if redis.call('HDEL', q.flight, position) == 1 and redis.call('HLEN', q.flight) == 1 then redis.call('DEL', q.flight) end
end

-- Take a live reference out. freed gets the place of its body. remember: keep the UNIQ_KEY of one that has a source.
local function take(q, position, ref, freed, remember)
  local name, source, place = parts(ref)
  redis.call('HDEL', q.ids, name)
  unsent(q, position)
  strike(q, index_of(q, position))
  redis.call('HINCRBY', counts, 'offline', -1)
  if q.length == 0 then
    redis.call('ZREM', heads, q.client)
    redis.call('ZREM', ages, ':' .. q.client)
  end
  if place ~= '' then freed[#freed + 1] = place end
  if remember and source ~= '' and redis.call('HSETNX', shard .. 'rem:' .. q.client, name, source) == 1 then
    redis.call('SADD', keepers, q.client)
    redis.call('HINCRBY', counts, 'remembered', 1)
  end
end

-- A PUBLISH or PUBREL that is new on the wire gets the next place in the order of sending; "n" counts them.
local function sent(q, position, packet_id, phase)
  local moved = packet_id .. ':' .. phase .. ':'
  local before = redis.call('HGET', q.flight, position)
  if before and string.sub(before, 1, #moved) == moved then return end
  redis.call('HSET', q.flight, position, moved .. redis.call('HINCRBY', q.flight, 'n', 1))
end
