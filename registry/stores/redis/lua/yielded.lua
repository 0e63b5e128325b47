-- run, life, namespace, the claim that was taken from it.
local lost = check_life()
if lost then return lost end
if call('HGET', P .. 'claims', ARGV[3]) == ARGV[4] then call('HDEL', P .. 'claims', ARGV[3]) end
return 1
