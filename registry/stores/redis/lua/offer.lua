-- run, life, now, node, expected clients; then, as one, nine for each: name, revision that
-- it had (0: unknown), its state, whether it is removed ('r') or an override alone ('o'), lease,
-- override; and where it was written while Redis was away, when, and after which revision, else
-- nothing, and when it changed as far as that is known (0: not); and the revision that it had before
-- it was given back, for an old server of Redis may have taken writes after that one, which count.
local lost = check_life()
if lost then return lost end
local meta = call('HMGET', P .. 'meta', 'revision', 'taken', 'size')
local revision, is_taken = number('meta', meta[1] or ARGV[2]), meta[2] == ARGV[2]
local life = tonumber(ARGV[2])
local size = number('meta', meta[3] or 0)
local first = revision
local at = ARGV[3]
local given, step = 0, 0
local function dirty_of(state)
  return state and state ~= '' and cjson.decode(state)[DIRTY] or 0
end
-- Whether a state is later than the one that there is, or was, where revisions do not tell: for one
-- of them was written while Redis was away. By the instance's own timestamp, and among equal ones by
-- when each was written.
local function is_later(state, at, name, stored, was_at)
  local change = call('HGET', P .. 'change', name)
  local other_at, _, last_state = string.match(change or '0 0 ', '^(%S+) (%S+) (.*)$')
  local theirs = dirty_of(stored and string.match(stored, '^%d+ (.*)$') or last_state)
  local mine = dirty_of(state)
  if mine ~= theirs then return mine > theirs end
  if not was_at and stored and last_state ~= '' then was_at = last_state end
  return tonumber(at) > tonumber(was_at or other_at)
end
local items = unpacked(ARGV[6])
for i = 1, #items, 9 do
  local name, offered, state, kind = items[i], tonumber(items[i + 1]), items[i + 2], items[i + 3]
  local lease, override, written = items[i + 4], items[i + 5], items[i + 6]
  local as = tonumber(items[i + 8])
  local id = string.match(name, '^[^%z]*%z([^%z]*)')
  local stored = call('HGET', P .. 'record', name)
  local known = stored and tonumber(string.match(stored, '^(%d+)'))
    or tonumber(call('ZSCORE', P .. 'log', name) or 0)
  -- What the state that there is was given back as, and when it was written; and where that was
  -- while Redis was away, after which revision: then its revision there tells nothing beside others'.
  local was, was_at, was_based = call('HGET', P .. 'was', name), nil, nil
  local earlier = known
  if was then
    local then_, before, when, based = string.match(was, '^(%d+) (%d+) ?(%d*) ?(%d*)')
    if tonumber(then_) == known then
      earlier, was_based = tonumber(before), tonumber(based)
      if when ~= '' then was_at = when end
    end
  end
  local last = was_based and known or earlier
  local has_override = call('HGET', P .. 'override', id)
  local changes = stored or kind ~= 'r' or known == 0 or (has_override or '') ~= override
  local is_news
  if kind == 'o' and offered == 0 then -- an override of nothing that is listed
    is_news = known == 0 and not has_override
  elseif (written == '' and known or earlier) == offered then -- it is there
    is_news = false
  elseif written ~= '' and last > tonumber(items[i + 7]) then -- others wrote too since then
    is_news = is_later(state, written, name, stored, was_at)
  elseif written ~= '' then -- nobody else touched it
    is_news = changes
  elseif was_based and as <= known then -- perhaps written beside what was written alone
    is_news = as > was_based and as ~= known and kind ~= 'o' and changes
      and is_later(state, tonumber(items[i + 7]) or 0, name, stored, was_at)
  else
    is_news = changes and (as > last or as == last and offered > known)
  end
  if is_news then
    given = given + 1
    local number = items[i + 1]
    -- Several may have written under the same number while each was alone.
    if is_taken or kind == 'o' or written ~= '' or offered >= life then
      revision = revision + 1
      number = whole(revision)
    end
    if number ~= items[i + 8] or kind == 'r' then
      local when = written == '' and items[i + 7] or written .. ' ' .. items[i + 7]
      call('HSET', P .. 'was', name, number .. ' ' .. items[i + 8] .. ' ' .. when)
    end
    local bits = 0
    if override ~= '' then
      bits = 2
      call('HSET', P .. 'override', id, override)
    elseif has_override then
      bits = 2
      call('HDEL', P .. 'override', id)
    end
    local counts = written ~= '' or was_based
    if counts and kind == 'r' and call('HEXISTS', P .. 'lease', name) == 1 then
      step = step - 1
    elseif counts and kind == '' and not stored and lease ~= '' then
      step = step + 1
    end
    if kind == 'o' then
      log_change(name, number, at, bits, '')
    elseif kind == 'r' then
      log_change(name, number, at, bits + 4, state)
      call('HDEL', P .. 'record', name)
      call('HDEL', P .. 'lease', name)
      if stored then size = size - 1 end
    else
      log_change(name, number, at, bits, written == '' and items[i + 7] or written)
      call('HSET', P .. 'record', name, number .. ' ' .. state)
      if lease ~= '' then
        call('HSET', P .. 'lease', name, lease .. ' 0 ' .. number)
      end
      if not stored then size = size + 1 end
    end
  end
end
call('HSET', P .. 'meta', 'revision', whole(revision), 'giver', ARGV[4], 'giving', whole(now()),
     'size', whole(size))
call('HSETNX', P .. 'meta', 'trimmed', ARGV[2])
await()
-- How many clients are expected: where Redis had lost it, what the node knows (``counted``) has all
-- that it wrote; else each client that it took while Redis was away is one more or less.
if ARGV[5] ~= '' and call('HSETNX', P .. 'meta', 'expected', ARGV[5]) == 1 then
  call('HSET', P .. 'meta', 'counted', ARGV[4])
elseif step ~= 0 and call('HGET', P .. 'meta', 'counted') ~= ARGV[4] then
  local expected = number('meta', call('HGET', P .. 'meta', 'expected') or 0)
  if expected ~= 0 then
    call('HSET', P .. 'meta', 'expected', whole(math.max(0, expected + step)))
  end
end
if revision > first then tell_moved(first, revision, ARGV[4], nil, {}) end
return given
