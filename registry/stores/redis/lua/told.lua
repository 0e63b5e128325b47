-- run, life, node (empty: nobody's), until when it told, the last news that it knows (empty: it
-- asks for none); then three for each namespace of which it has news: name, revision, batch.
local lost = check_life()
if lost then return lost end
local now = now()
if ARGV[3] ~= '' then call('HSET', P .. 'nodes', ARGV[3], ARGV[4]) end
local by_all = now
local present = {}
local nodes = call('HGETALL', P .. 'nodes')
for i = 2, #nodes, 2 do
  local told = tonumber(nodes[i])
  if told < now - 60000 then
    call('HDEL', P .. 'nodes', nodes[i - 1])
  elseif told > now - 5000 then
    present[#present + 1] = nodes[i - 1]
    by_all = math.min(by_all, told)
  end
end
local newest = tonumber(call('GET', P .. 'newest') or 0)
local before = newest
for i = 6, #ARGV, 3 do
  local revision, batch = tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
  local far = call('HGET', P .. 'far', ARGV[i])
  if far then
    local its_revision, its_batch = string.match(far, '^(%S+) (%S+)$')
    revision = math.max(revision, tonumber(its_revision))
    batch = math.max(batch, tonumber(its_batch))
  end
  local told = whole(revision) .. ' ' .. whole(batch)
  if told ~= far then
    newest = newest + 1
    call('HSET', P .. 'far', ARGV[i], told)
    call('ZADD', P .. 'news', whole(newest), ARGV[i])
  end
end
if newest > before then call('SET', P .. 'newest', whole(newest)) end
local names, far = {}, {}
local known = tonumber(ARGV[5] or '')
if known and known ~= newest then
  if known > newest then known = 0 end  -- what was told was lost
  names = call('ZRANGEBYSCORE', P .. 'news', '(' .. whole(known), '+inf', 'LIMIT', 0, 1000)
  if #names > 0 then far = call('HMGET', P .. 'far', unpack(names)) end
  if #names == 1000 then newest = tonumber(call('ZSCORE', P .. 'news', names[1000])) end
end
return {whole(by_all), present, whole(newest), names, far}
