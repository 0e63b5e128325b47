-- run, life, claim or nothing; then each lock and its token.
local lost = check_life()
if lost then return lost end
if ARGV[3] ~= '' then call('HSET', P .. 'meta', 'claim', ARGV[3]) end
for i = 4, #ARGV, 2 do
  local known = call('HGET', P .. 'fences', ARGV[i])
  if not known or tonumber(known) < tonumber(ARGV[i + 1]) then
    call('HSET', P .. 'fences', ARGV[i], ARGV[i + 1])
  end
end
return 1
