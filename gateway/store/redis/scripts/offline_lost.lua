-- include lib/queue
-- Take out references whose body is gone. ARGV: client; position, reference of each. Returns the counts, and how many of them were still there.
local q = queue_of(ARGV[1])
local lost = 0
for i = 2, #ARGV, 2 do
  if reference(q, tonumber(ARGV[i])) == ARGV[i + 1] then
    take(q, ARGV[i], ARGV[i + 1], {}, false)
    lost = lost + 1
  end
end
return {counts_of(counts), lost}
