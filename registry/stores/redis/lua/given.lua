-- run, life, node.
local lost = check_life('')
if lost then return lost end
call('HDEL', P .. 'awaited', ARGV[3])
if namespace ~= '' and call('HGET', P .. 'meta', 'counted') == ARGV[3] then
  call('HDEL', P .. 'meta', 'counted')
end
return 1
