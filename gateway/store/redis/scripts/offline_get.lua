-- include lib/queue
-- What was not sent yet. ARGV: client, most, "1" for newest first, positions > this one, positions < this one ("" for no bound).
-- Position and reference of each.
local q = queue_of(ARGV[1])
local most, newest = tonumber(ARGV[2]), ARGV[3] == '1'
local first = math.max(0, index_of(q, tonumber(ARGV[4])) + 1)
local last = q.length - 1
if ARGV[5] ~= '' then last = math.min(last, index_of(q, tonumber(ARGV[5])) - 1) end
local flying = redis.call('EXISTS', q.flight) == 1
local rows = {}

local function seen(index, element)
  local position = score(index + q.next - q.length)
  if not flying or redis.call('HEXISTS', q.flight, position) == 0 then
    rows[#rows + 1] = position
    rows[#rows + 1] = element
  end
end

local MOST_STEP = 500
while #rows < 2 * most and first <= last do
  local step = math.min(MOST_STEP, most - #rows / 2 + 8)
  local from, to = first, math.min(last, first + step - 1)
  if newest then from, to = math.max(first, last - step + 1), last end
  local elements = redis.call('LRANGE', q.key, from, to)
  local n = 1
  while n <= #elements and #rows < 2 * most do
    local element = elements[newest and #elements + 1 - n or n]
    local jump = 1
    if not struck(element) then
      seen(newest and to + 1 - n or from - 1 + n, element)
    else
      jump = math.max(1, tonumber(element) * (newest and -1 or 1))
    end
    n = n + jump
  end
  if newest then last = to + 1 - n else first = from - 1 + n end
end
return rows
