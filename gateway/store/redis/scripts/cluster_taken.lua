-- Remove parcels from an inbox. KEYS: open (its bytes), inbox; ARGV: id and bytes of each. Answer: how many were there
local removed, freed = 0, 0
for n = 1, #ARGV, 2 do
  if redis.call('XDEL', KEYS[2], ARGV[n]) == 1 then
    removed = removed + 1
    freed = freed + tonumber(ARGV[n + 1])
  end
end
if freed > 0 and redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('DECRBY', KEYS[1], freed)
end
return removed
