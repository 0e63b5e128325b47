-- run, life, up to this revision, how many at most.
local lost = check_life()
if lost then return lost end
local meta = call('HMGET', P .. 'meta', 'revision', 'trimmed')
local life = tonumber(ARGV[2])
-- What was given back under its old revision stays as long as nothing after it is forgotten: who is
-- yet to take up this life is told by the log what there is (LISTING).
if not meta[1] or tonumber(ARGV[3]) > tonumber(meta[1]) or tonumber(ARGV[3]) <= life then
  return 0
end
local names = call('ZRANGEBYSCORE', P .. 'log', '-inf', ARGV[3], 'WITHSCORES',
                   'LIMIT', 0, tonumber(ARGV[4]))
for i = 1, #names, 2 do
  call('ZREM', P .. 'log', names[i])
  call('HDEL', P .. 'change', names[i])
  call('HDEL', P .. 'was', names[i])
end
local last = #names > 0 and tonumber(names[#names]) or 0
if #names / 2 < tonumber(ARGV[4]) then last = tonumber(ARGV[3]) end
-- From the first portion on the log does not tell all, which nobody is to take it for.
last = math.max(last, life + 1)
if last > tonumber(meta[2] or ARGV[2]) then call('HSET', P .. 'meta', 'trimmed', whole(last)) end
return #names / 2
