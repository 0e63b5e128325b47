-- run, life.
local lost = check_life()
if lost then return lost end
return call('HGETALL', P .. 'namespaces')
