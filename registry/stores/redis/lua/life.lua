-- run, the life to begin (at the root: the greatest revision that the caller knows; empty: only look);
-- the life, its run and the server's run as the caller saw them; now, or at the root which request this
-- is; '1' where nodes may have taken up the life already; at the root, how far beyond the life begins
-- if the server's clock is not beyond it ('0': it is the given one); how many nodes are to be awaited,
-- and they; and namespaces that the root is to list before any node can take the life up without them.
local life = call('HMGET', P .. 'life', 'number', 'run', 'begin', 'open')
local meta = call('HMGET', P .. 'meta', 'revision', 'size', 'claim')
if ARGV[2] == '' or (life[1] or '') ~= ARGV[3] or (life[2] or '') ~= ARGV[4]
   or ARGV[5] ~= ARGV[1] then
  return {life[1] or '', life[2] or '', ARGV[1], meta[1] or '0', meta[2] or '0', life[3] or '',
          life[4] or '', meta[3] or ''}
end
-- The same request may come twice, and what the first began be lost in between. So the instant is in
-- the begin of a part, which never comes again, and in the number of a life.
local time = call('TIME')
local instant = tonumber(time[1]) * 1000000 + tonumber(time[2])
local number, request, beyond = ARGV[2], ARGV[2], tonumber(ARGV[8]) or 0
if namespace == '' then
  request = ARGV[6]
  if beyond > 0 then
    local known = tonumber(number)
    number = whole(instant > known and instant or known + beyond + instant % beyond)
  end
end
local begin = request .. '/' .. whole(instant)
call('HSET', P .. 'life', 'number', number, 'run', ARGV[1], 'begin', begin)
call('HDEL', P .. 'life', 'open')
call('DEL', P .. 'awaited')
local awaited = 9 + tonumber(ARGV[9])
for i = 10, awaited do call('HSET', P .. 'awaited', ARGV[i], '') end
await()
if namespace == '' then
  for i = awaited + 1, #ARGV do call('HSETNX', P .. 'namespaces', ARGV[i], '') end
  call('DEL', P .. 'locks', P .. 'claims', P .. 'far', P .. 'news', P .. 'newest')
else
  call('HDEL', P .. 'meta', 'claim', 'counted')
  local taken, after = '', number
  if ARGV[7] == '1' then
    taken = number
    -- Who took the life up without it asks for what came after the number, and what is kept did not.
    if call('EXISTS', P .. 'record', P .. 'override', P .. 'log') > 0 then
      after = whole(tonumber(number) + 1)
    end
  end
  call('HSET', P .. 'meta', 'revision', after, 'trimmed', after, 'taken', taken)
  local records = call('HGETALL', P .. 'record')
  for i = 1, #records, 2 do
    if not call('ZSCORE', P .. 'log', records[i]) then
      call('ZADD', P .. 'log', string.match(records[i + 1], '^(%d+)'), records[i])
    end
    -- It counts as changed now, and keeps when that was.
    local change = call('HGET', P .. 'change', records[i]) or ''
    local at, kind, since = string.match(change, '^(%S+) (%d+) (.*)$')
    if not at or tonumber(kind) >= 4 then since = '' elseif since == '' then since = at end
    call('HSET', P .. 'change', records[i], ARGV[6] .. ' 0 ' .. since)
  end
  if life[1] then tell_moved(0, tonumber(after), '', nil, {}) end
end
return {number, ARGV[1], ARGV[1], number, meta[2] or '0', begin, '', ''}
