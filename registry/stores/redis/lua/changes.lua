-- An entry of the log, six values. What is listed since the revision ``known`` or before goes
-- without its record and its lease. With its revision goes the one with which it was given back,
-- where that is another; but none that was given while Redis was away.
local function change_of(name, revision, into, known)
  local change = call('HGET', P .. 'change', name) or '0 0 '
  local kind = number('change', string.match(change, '^%S+ (%d+)'))
  local record, override, lease = '', '', ''
  if kind % 4 >= 2 then
    override = call('HGET', P .. 'override', string.match(name, '^[^%z]*%z([^%z]*)')) or ''
  end
  if kind < 4 and string.sub(name, -1) ~= '\0' and tonumber(revision) > known then
    record = call('HGET', P .. 'record', name) or ''
    lease = call('HGET', P .. 'lease', name) or ''
  end
  local as, was = whole(tonumber(revision)), call('HGET', P .. 'was', name)
  if was then
    local then_, before, _, based = string.match(was, '^(%d+) (%d+) ?(%d*) ?(%d*)')
    if then_ == as and based == '' and before ~= as then as = as .. ' ' .. before end
  end
  local n = #into
  into[n + 1], into[n + 2], into[n + 3] = name, as, change
  into[n + 4], into[n + 5], into[n + 6] = record, override, lease
end
-- The entries after a revision and up to another; how many.
local function changes(after, up_to, into, most, known)
  local found = call('ZRANGEBYSCORE', P .. 'log', '(' .. after, up_to, 'WITHSCORES',
                     'LIMIT', 0, most)
  for i = 1, #found, 2 do change_of(found[i], found[i + 1], into, known) end
  return #found / 2
end
