-- Note what a node is about to write elsewhere, so that it can be found when the node is gone. KEYS: open, the set; ARGV: names.
-- Answer: 1; 0 when its inbox is not open: it is declared lost, and who cares for it may have read the set already
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
redis.call('SADD', KEYS[2], unpack(ARGV))
return 1
