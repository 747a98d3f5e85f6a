-- include lib/session
-- Delete a session that has no connection since a moment, with its client's clock. KEYS: Keys.session. ARGV: client id, moment (ms).
-- Returns the counts, the filters it had and the places of bodies to free; only the counts when it is another's turn to be deleted.
local client = read_client(ARGV[1])
local left = redis.call('ZSCORE', LEFT, client.id)
if not left or tonumber(left) > tonumber(ARGV[2]) then
  return {counts_of(COUNTS)}
end
redis.call('ZREM', LEFT, client.id)
if client.kind ~= PERSISTENT or client.node ~= '' then
  return {counts_of(COUNTS)}
end
local filters = forget_session(client)
redis.call('DEL', CLIENT)
redis.call('HINCRBY', COUNTS, 'sessions', -1)
return {counts_of(COUNTS), filters, freed}
