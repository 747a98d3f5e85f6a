-- The head of a parent's index: "<version> <version of the shapes> <wide: 0 or 1> <version of wide>"
local function head_of(key)
  local version, shaped, wide, widened = string.match(redis.call('GET', key) or '0 0 0 0', '^(%d+) (%d+) (%d) (%d+)$')
  return tonumber(version), tonumber(shaped), wide == '1', tonumber(widened)
end

local function packed_head(version, shaped, wide, widened)
  return string.format('%.0f %.0f %d %.0f', version, shaped, wide and 1 or 0, widened)
end
