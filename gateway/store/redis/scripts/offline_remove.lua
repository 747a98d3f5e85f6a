-- include lib/queue
-- Acknowledged. ARGV: client, positions. Returns the counts, and the places of bodies to free.
local q = queue_of(ARGV[1])
local freed = {}
for i = 2, #ARGV do
  local position = tonumber(ARGV[i])
  local ref = reference(q, position)
  if ref then take(q, ARGV[i], ref, freed, true) end
end
return {counts_of(counts), freed}
