-- include lib/session
-- Make a node and channel the owner of a session (Store.claim). KEYS: Keys.session.
-- ARGV: client id, node, channel, ip, kind, now, id of connect, id of tcpclean, gentle, limit of the outbox, its items in other shards, will ("": none)
-- Returns {"owned", node, channel}, {"full", items} or {"ok", epoch, present, subscriptions, inbound, backlog, rows in flight, counts, freed};
-- not present: subscriptions are those that were deleted.
local client = read_client(ARGV[1])
local node, kind, now, will = ARGV[2], tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[12]
local owned = client.node ~= ''
if ARGV[9] == '1' and owned and client.node ~= node then
  return {'owned', client.node, client.channel}
end
local needed = 1
if owned then
  needed = 2 + redis.call('EXISTS', WILL)
end
local items = tonumber(redis.call('HGET', COUNTS, 'outbox') or 0) + tonumber(ARGV[11])
if items + needed > tonumber(ARGV[10]) then
  return {'full', items}
end
local epoch = next_number() -- greater than any before, also after the row was pruned
if owned then
  emit(client, ARGV[8], 'tcpclean', now, 'taken_over', client.node)
  emit_will(client)
  if client.node ~= node then
    redis.call('SREM', ON .. client.node, client.id)
  end
else
  redis.call('ZREM', LEFT, client.id)
  redis.call('ZREM', GONE, client.id)
end
local present = kind == PERSISTENT and client.kind == PERSISTENT
local subscriptions, inbound, backlog, flying = {}, {}, 0, {}
if present then
  subscriptions = redis.call('HGETALL', SUBSCRIPTIONS)
  inbound = redis.call('HGETALL', INBOUND)
  backlog = count_backlog()
  flying = rows_in_flight()
elseif client.kind ~= NONE then
  subscriptions = forget_session(client)
end
if kind ~= client.kind then
  redis.call('HINCRBY', COUNTS, 'sessions', (kind == PERSISTENT and 1 or 0) - (client.kind == PERSISTENT and 1 or 0))
end
client.channel, client.ip = ARGV[3], ARGV[4]
emit(client, ARGV[7], 'connect', now, '', node)
redis.call('HSET', CLIENT, 'epoch', epoch, 'node', node, 'channel', client.channel, 'ip', client.ip, 'kind', kind,
  'time', client.time, 'seq', client.seq)
redis.call('SADD', ON .. node, client.id)
if will ~= '' then
  redis.call('SET', WILL, will)
else
  redis.call('DEL', WILL)
end
return {'ok', epoch, present and 1 or 0, subscriptions, inbound, backlog, flying, counts_of(COUNTS), freed}
