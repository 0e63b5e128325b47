-- run, life, namespace, the begin of its part.
local lost = check_life()
if lost then return lost end
local is_news = ''
local known, begin = string.match(call('HGET', P .. 'namespaces', ARGV[3]) or '', '^(%S+) (%S+)$')
if known ~= ARGV[2] then
  begin, is_news = ARGV[4], '1'
  call('HSET', P .. 'namespaces', ARGV[3], ARGV[2] .. ' ' .. begin)
end
return {begin, is_news, call('HGETALL', P .. 'tokens'), call('HKEYS', P .. 'awaited')}
