-- include lib/counts
-- Whether ARGV[1] is the newest epoch of the session whose client hash is KEYS[1]; between two connections a session keeps its epoch.
local function fenced()
  local row = redis.call('HMGET', KEYS[1], 'epoch', 'kind')
  return row[1] == ARGV[1] and row[2] ~= '0'
end

