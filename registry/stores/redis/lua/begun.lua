-- run, life, namespace.
local lost = check_life()
if lost then return lost end
call('HSET', P .. 'namespaces', ARGV[3], ARGV[2])
return 1
