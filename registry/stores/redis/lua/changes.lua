-- An entry of the log, six values. What is listed since the revision ``known`` or before goes
-- without its record and its lease.
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
  local n = #into
  into[n + 1], into[n + 2], into[n + 3] = name, whole(tonumber(revision)), change
  into[n + 4], into[n + 5], into[n + 6] = record, override, lease
end
-- The entries after a revision and up to another; how many.
local function changes(after, up_to, into, most, known)
  local found = call('ZRANGEBYSCORE', P .. 'log', '(' .. after, up_to, 'WITHSCORES',
                     'LIMIT', 0, most)
  for i = 1, #found, 2 do change_of(found[i], found[i + 1], into, known) end
  return #found / 2
end
