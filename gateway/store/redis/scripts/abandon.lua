-- include lib/session
-- A lost node's connection (Store.abandoned). KEYS: Keys.session. ARGV: client id, node, now, id of tcpclean
-- Returns {1 when it was that node's and is released now, counts}. A new epoch fences off a node that was only frozen.
local client = read_client(ARGV[1])
if client.node ~= ARGV[2] then
  redis.call('SREM', ON .. ARGV[2], client.id)
  return {0, counts_of(COUNTS)}
end
part(client)
leave(client, ARGV[4], tonumber(ARGV[3]), 'node_lost', ARGV[2], true)
redis.call('HSET', CLIENT, 'epoch', next_number())
return {1, counts_of(COUNTS)}
