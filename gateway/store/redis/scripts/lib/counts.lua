-- The rows of a shard, as Counts.take of instance.py reads them. key: Keys.counts.
local function counts_of(key)
  return redis.call('HMGET', key, 'sessions', 'subscriptions', 'offline', 'remembered', 'outbox')
end

