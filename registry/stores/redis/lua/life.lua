-- run, the life to begin (empty: only look); the life, its run and the server's run as the caller
-- saw them; now; '1' where nodes may have taken up the life already; the nodes to be awaited.
local life = call('HMGET', P .. 'life', 'number', 'run')
local meta = call('HMGET', P .. 'meta', 'revision', 'size')
if ARGV[2] == '' or (life[1] or '') ~= ARGV[3] or (life[2] or '') ~= ARGV[4]
   or ARGV[5] ~= ARGV[1] then
  return {life[1] or '', life[2] or '', ARGV[1], meta[1] or '0', meta[2] or '0'}
end
call('HSET', P .. 'life', 'number', ARGV[2], 'run', ARGV[1])
call('DEL', P .. 'awaited')
for i = 8, #ARGV do call('HSET', P .. 'awaited', ARGV[i], '') end
await()
if namespace == '' then
  call('DEL', P .. 'locks', P .. 'claims', P .. 'far', P .. 'news', P .. 'newest')
else
  call('HDEL', P .. 'meta', 'claim', 'counted')
  call('HSET', P .. 'meta', 'revision', ARGV[2], 'trimmed', ARGV[2],
       'taken', ARGV[7] == '1' and ARGV[2] or '')
  local records = call('HGETALL', P .. 'record')
  for i = 1, #records, 2 do
    if not call('ZSCORE', P .. 'log', records[i]) then
      call('ZADD', P .. 'log', string.match(records[i + 1], '^(%d+)'), records[i])
    end
    call('HSET', P .. 'change', records[i], ARGV[6] .. ' 0 ')
  end
  if life[1] then tell_moved(0, tonumber(ARGV[2]), '', nil, {}) end
end
return {ARGV[2], ARGV[1], ARGV[1], ARGV[2], meta[2] or '0'}
