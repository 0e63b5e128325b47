-- run, life, id of this group, revision known, lock, token, batch known, node, until when all nodes
-- told their renewals, '1' where no claim could be had; then twelve for each commit: name, id,
-- expected, expected override, at, instance, lease, flags, override, step, opening, instances at
-- most.
local lost = check_life()
if lost then return lost end
local group = ARGV[3]
local done = call('GET', P .. 'done:' .. group)
if done then return {done, '', '', '', '1', {}} end
if call('EXISTS', P .. 'awaited') == 1 then
  call('HDEL', P .. 'awaited', ARGV[8])
  if call('EXISTS', P .. 'awaited') == 1 then
    return redis.error_reply('WAIT other nodes have not given back')
  end
end
if ARGV[5] ~= '' then
  local token = call('HGET', P .. 'fences', ARGV[5])
  if token and tonumber(token) > tonumber(ARGV[6]) then
    return redis.error_reply('FENCE the lock is another\'s')
  end
end
local meta = call('HMGET', P .. 'meta', 'revision', 'trimmed', 'expected', 'size', 'claim')
local revision = number('meta', meta[1] or ARGV[2])
local trimmed = number('meta', meta[2] or ARGV[2])
local expected = meta[3] and number('meta', meta[3])
local size, has_claim = number('meta', meta[4] or 0), number('meta', meta[5] or 0) > 0
if not has_claim and ARGV[10] == '' then
  for i = 11, #ARGV, 12 do
    if ARGV[i + 5] ~= '' and not string.find(ARGV[i + 7], 'r') then
      return redis.error_reply('OPEN the namespace has no claim')
    end
  end
end
local first = revision
local missing, is_far = {}, '0'
local known = tonumber(ARGV[4])
if known < trimmed then
  is_far = '1'
elseif known < revision then
  if changes(ARGV[4], whole(revision), missing, 201, 0) > 200 then
    missing, is_far = {}, '1'
  end
end
local size_before, expected_before = size, expected
local function is_told(name, lease)
  local deadline, duration, rest, batch = string.match(lease, '^(%S+) (%S+)( %S+ %S+ (%S+) .*)$')
  if is_beyond(deadline, duration) then
    call('HSET', P .. 'lease', name, whole(now() + tonumber(duration)) .. ' ' .. duration .. rest)
    return false
  end
  return tonumber(batch) <= tonumber(ARGV[7]) and tonumber(deadline) < tonumber(ARGV[9])
end
local outcomes, evicted, told = {}, {}, {}
for i = 11, #ARGV, 12 do
  local name, id, at, instance = ARGV[i], ARGV[i + 1], ARGV[i + 4], ARGV[i + 5]
  local lease, flags, override = ARGV[i + 6], ARGV[i + 7], ARGV[i + 8]
  local stored = call('HGET', P .. 'record', name)
  local stored_revision = stored and string.match(stored, '^(%d+)') or '0'
  local holds = stored_revision == ARGV[i + 2]
    and (call('HGET', P .. 'override', id) or '') == ARGV[i + 3]
  if holds and string.find(flags, 'd') then
    local found = call('HGET', P .. 'lease', name)
    holds = found and is_told(name, found)
  end
  if holds and not stored and instance ~= '' then
    holds = has_claim and (ARGV[i + 11] == '' or size < tonumber(ARGV[i + 11]))
  end
  if not holds then
    outcomes[#outcomes + 1] = '-'
  else
    revision = revision + 1
    local number = whole(revision)
    outcomes[#outcomes + 1] = number
    local removes = string.find(flags, 'r') ~= nil
    local kind = 0
    if override ~= '' then
      kind = 2
      if override == '-' then
        call('HDEL', P .. 'override', id)
      else
        call('HSET', P .. 'override', id, override)
      end
    end
    if string.find(flags, 'e') then
      kind = kind + 1
      local second = whole(math.floor(tonumber(at) / 1000))
      evicted[second] = (evicted[second] or 0) + 1
    end
    local change, of_override
    local record, begun = '', ''
    if instance == '' then
      name = name .. '\0'
      change, of_override = log_change(name, revision, at, kind, '')
    elseif removes then
      change, of_override = log_change(name, revision, at, kind + 4, instance)
      call('HDEL', P .. 'record', name)
      call('HDEL', P .. 'lease', name)
      if stored then size = size - 1 end
    else
      change, of_override = log_change(name, revision, at, kind, '')
      record = number .. ' ' .. instance
      call('HSET', P .. 'record', name, record)
      if lease ~= '' then
        begun = lease .. ' 0 ' .. number
        call('HSET', P .. 'lease', name, begun)
      end
      if not stored then size = size + 1 end
    end
    local n = #told
    told[n + 1], told[n + 2], told[n + 3], told[n + 4] = name, number, change, record
    told[n + 5] = of_override and call('HGET', P .. 'override', id) or ''
    told[n + 6] = begun
    local step = tonumber(ARGV[i + 9])
    if step ~= 0 then
      expected = expected or tonumber(ARGV[i + 10])
      if expected ~= 0 then expected = math.max(0, expected + step) end
    end
  end
end
local outcome = table.concat(outcomes, ' ')
if revision > first then
  call('HSET', P .. 'meta', 'revision', whole(revision))
  if not meta[2] then call('HSET', P .. 'meta', 'trimmed', ARGV[2]) end
  if expected ~= expected_before then call('HSET', P .. 'meta', 'expected', whole(expected)) end
  if size ~= size_before then call('HSET', P .. 'meta', 'size', whole(size)) end
  local newest
  for second, count in pairs(evicted) do
    call('HINCRBY', P .. 'evicted', second, count)
    newest = math.max(newest or 0, tonumber(second))
  end
  if newest then
    for _, second in ipairs(call('HKEYS', P .. 'evicted')) do
      if math.abs(tonumber(second) - newest) > 60 then call('HDEL', P .. 'evicted', second) end
    end
  end
  call('SET', P .. 'done:' .. group, outcome, 'EX', 60)
  tell_moved(first, revision, ARGV[8], expected, told)
end
return {outcome, whole(revision), whole(trimmed), expected and whole(expected) or '', is_far,
        missing}
