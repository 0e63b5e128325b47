-- Note a change as the last one of its instance; an earlier one's word of an override stays. What
-- was noted, and whether it says anything of an override.
local function log_change(name, revision, at, kind, last_state)
  local before = call('HGET', P .. 'change', name)
  if before and call('ZSCORE', P .. 'log', name) then
    local known = tonumber(string.match(before, '^%S+ (%d+)'))
    if known % 4 >= 2 and kind % 4 < 2 then kind = kind + 2 end
  end
  local change = at .. ' ' .. kind .. ' ' .. last_state
  call('HSET', P .. 'change', name, change)
  call('ZADD', P .. 'log', whole(revision), name)
  return change, kind % 4 >= 2
end
