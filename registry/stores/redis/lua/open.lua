-- run, life, namespace, '1' where it is to hold instances, how many may ('': any number).
local lost = check_life()
if lost then return lost end
local begun, claim = call('HGET', P .. 'namespaces', ARGV[3]), ''
if ARGV[4] ~= '' then
  if ARGV[5] ~= '' and not call('HGET', P .. 'claims', ARGV[3])
     and call('HLEN', P .. 'claims') >= tonumber(ARGV[5]) then
    return {begun or '', '', call('HKEYS', P .. 'claims'), {}}
  end
  claim = whole(math.max(tonumber(call('GET', P .. 'claimed') or 0), tonumber(ARGV[2])) + 1)
  call('SET', P .. 'claimed', claim)
  call('HSET', P .. 'claims', ARGV[3], claim)
end
if not begun then call('HSET', P .. 'namespaces', ARGV[3], '') end
return {begun or '', claim, call('HGETALL', P .. 'tokens'), call('HKEYS', P .. 'awaited')}
