-- run, life, node, after which revision (empty: from the start), how many at most,
-- whether the node takes up what is there ('1').
local lost = check_life()
if lost then return lost end
local meta = call('HMGET', P .. 'meta', 'revision', 'trimmed', 'taken', 'giver', 'giving')
for _, i in ipairs({1, 2, 5}) do number('meta', meta[i] or 0) end
local is_taken = meta[3] == ARGV[2]
if ARGV[4] == '' then
  if ARGV[6] == '1' then
    call('HSET', P .. 'meta', 'taken', ARGV[2])
    is_taken = true
  elseif not is_taken then
    local at = now()
    if meta[4] and meta[4] ~= ARGV[3] and math.abs(tonumber(meta[5]) - at) < 1500 then
      return {'', '', '', '', ''}
    end
    call('HSET', P .. 'meta', 'giver', ARGV[3], 'giving', whole(at))
  end
end
await()
local after = ARGV[4] == '' and '-inf' or '(' .. ARGV[4]
local found = call('ZRANGEBYSCORE', P .. 'log', after, '+inf', 'WITHSCORES',
                   'LIMIT', 0, tonumber(ARGV[5]))
local has_moved = call('EXISTS', P .. 'was') == 1
local values = {}
for i = 1, #found, 2 do
  local revision, before = whole(tonumber(found[i + 1])), ''
  if has_moved then
    local was = call('HGET', P .. 'was', found[i])
    if was then
      local then_, earlier = string.match(was, '^(%d+) (%d+)')
      if then_ == revision then before = earlier end
    end
  end
  values[#values + 1] = found[i]
  values[#values + 1] = revision
  values[#values + 1] = before
end
return {meta[1] or ARGV[2], meta[2] or ARGV[2], is_taken and '1' or '0', packed(values),
        #found > 0 and whole(tonumber(found[#found])) or ''}
