-- include lib/session
-- The connection is gone (Store.release). KEYS: Keys.session.
-- ARGV: client id, epoch (0: the channel tells), channel, polite, reason, now, node, id of disconnect, id of tcpclean
-- Returns the counts, or false when somebody else is the owner.
local client = read_client(ARGV[1])
local epoch, now = tonumber(ARGV[2]), tonumber(ARGV[6])
local mine = client.epoch == epoch
if epoch == 0 then
  mine = client.channel == ARGV[3]
end
if client.node == '' or not mine then
  return false
end
part(client)
local polite = ARGV[4] == '1'
if polite then -- the will is discarded [MQTT-3.14.4-3]
  emit(client, ARGV[8], 'disconnect', now, ARGV[5], ARGV[7])
end
leave(client, ARGV[9], now, ARGV[5], ARGV[7], not polite)
return counts_of(COUNTS)
