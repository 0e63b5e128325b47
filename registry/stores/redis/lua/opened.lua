-- run, life, the begin of which the root knows (empty: the namespace is not opened, but told of
-- tokens), claim or nothing; then each lock and its token.
local lost = check_life(ARGV[3])
if lost then return lost end
if ARGV[3] ~= '' then call('HSET', P .. 'life', 'open', '1') end
if ARGV[4] ~= '' then call('HSET', P .. 'meta', 'claim', ARGV[4]) end
for i = 5, #ARGV, 2 do
  local known = call('HGET', P .. 'fences', ARGV[i])
  if not known or tonumber(known) < tonumber(ARGV[i + 1]) then
    call('HSET', P .. 'fences', ARGV[i], ARGV[i + 1])
  end
end
return 1
