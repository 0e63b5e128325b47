-- run, life, the begin of which the root knows (empty: the namespace is not opened, but told of
-- tokens), claim or nothing; how many nodes are awaited, and they (empty: as it was begun); then each
-- lock and its token.
local lost = check_life(ARGV[3])
if lost then return lost end
if ARGV[3] ~= '' then call('HSET', P .. 'life', 'open', '1') end
-- Several may open it at once, and each has a claim: the last one counts, as at the root.
local claim = math.abs(tonumber(call('HGET', P .. 'meta', 'claim') or 0))
if ARGV[4] ~= '' and tonumber(ARGV[4]) > claim then call('HSET', P .. 'meta', 'claim', ARGV[4]) end
local tokens = 6
if ARGV[5] ~= '' then
  tokens = 6 + tonumber(ARGV[5])
  local awaited = {}
  for i = 6, tokens - 1 do awaited[ARGV[i]] = true end
  for _, node in ipairs(call('HKEYS', P .. 'awaited')) do
    if not awaited[node] then call('HDEL', P .. 'awaited', node) end
  end
end
for i = tokens, #ARGV, 2 do
  local known = call('HGET', P .. 'fences', ARGV[i])
  if not known or tonumber(known) < tonumber(ARGV[i + 1]) then
    call('HSET', P .. 'fences', ARGV[i], ARGV[i + 1])
  end
end
return 1
