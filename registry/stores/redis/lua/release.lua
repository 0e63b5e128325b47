local lost = check_life()
if lost then return lost end
local stored = call('HGET', P .. 'locks', ARGV[3])
if stored and string.match(stored, '^%S+ %S+ (.*)$') == ARGV[4] then
  call('HDEL', P .. 'locks', ARGV[3])
end
return 1
