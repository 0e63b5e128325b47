"""What Redis runs: each script is one atomic operation on the keys of one registry.

``KEYS[1]`` is the registry's prefix, in braces, so that all of its keys are in one slot of a
Cluster. After it come, with ``n`` for a namespace:

| key | kind | content |
| --- | --- | --- |
| ``life`` | hash | ``number``, and ``run``: the run of the server in which it began |
| ``sizes`` | hash | namespace → how many instances it holds |
| ``tokens``, ``locks`` | hashes | lock → the last token; its owner, end and length |
| ``notes`` | hash | name → what was noted |
| ``nodes`` | hash | node → the instant up to which it told its renewals |
| ``renewed`` | stream | the latest batches of renewals, by their numbers |
| ``told`` | string | the number of the last batch |
| ``done:ID`` | string | the outcome of a group of commits, for a minute |
| ``n:record`` | hash | instance → revision, a blank, the instance |
| ``n:lease`` | hash | instance → a lease (below) |
| ``n:override`` | hash | id → status |
| ``n:log`` | sorted set | instance, by the revision of its last change |
| ``n:change`` | hash | instance → instant, kind, and a removed instance's last state |
| ``n:was`` | hash | instance → its revision now, and in the life from which it was given back |
| ``n:evicted`` | hash | second → how many were evicted in it |
| ``n:meta`` | hash | ``revision``, ``trimmed``, ``expected`` |

An instance's name is its application and id, joined by NUL; an override that changed alone has the
name of its instance and another NUL. A lease is its deadline, duration, last renewal, the client's
own last renewal, the number of the batch that last renewed it, and the revision with which it
began. Instants are Redis' time in milliseconds. Lua's numbers are
doubles: they hold each revision exactly, but are to be written in full.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple


class Script(NamedTuple):
    """A script, and the name by which Redis knows it once it was loaded."""

    text: str
    sha: str


def _script(*parts: str) -> Script:
    text = "".join(parts)
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


_BEGIN = """
local P = KEYS[1] .. ':'
local call = redis.call
local function whole(number) return string.format('%.0f', number) end
local function check_life()
  local life = call('HMGET', P .. 'life', 'number', 'run')
  if life[1] ~= ARGV[2] or life[2] ~= ARGV[1] then
    return redis.error_reply('LIFE is another')
  end
  return nil
end
"""

_CHANGES = """
-- The entries of the log after a revision and up to another, six values each. What is listed since
-- the revision ``known`` or before goes without its record and its lease.
local function changes(N, after, up_to, into, most, known)
  local found = call('ZRANGEBYSCORE', N .. 'log', '(' .. after, up_to, 'WITHSCORES',
                     'LIMIT', 0, most)
  for i = 1, #found, 2 do
    local name = found[i]
    local change = call('HGET', N .. 'change', name) or '0 0 '
    local kind = tonumber(string.match(change, '^%S+ (%d+)'))
    local record, override, lease = '', '', ''
    if kind % 4 >= 2 then
      override = call('HGET', N .. 'override', string.match(name, '^[^%z]*%z([^%z]*)')) or ''
    end
    if kind < 4 and string.sub(name, -1) ~= '\\0' and tonumber(found[i + 1]) > known then
      record = call('HGET', N .. 'record', name) or ''
      lease = call('HGET', N .. 'lease', name) or ''
    end
    into[#into + 1] = name
    into[#into + 1] = whole(tonumber(found[i + 1]))
    into[#into + 1] = change
    into[#into + 1] = record
    into[#into + 1] = override
    into[#into + 1] = lease
  end
  return #found / 2
end
"""

_WRITE = """
-- Note a change as the last one of its instance; an earlier one's word of an override stays. What
-- was noted, and whether it says anything of an override.
local function log_change(N, name, revision, at, kind, last_state)
  local before = call('HGET', N .. 'change', name)
  if before and call('ZSCORE', N .. 'log', name) then
    local known = tonumber(string.match(before, '^%S+ (%d+)'))
    if known % 4 >= 2 and kind % 4 < 2 then kind = kind + 2 end
  end
  local change = at .. ' ' .. kind .. ' ' .. last_state
  call('HSET', N .. 'change', name, change)
  call('ZADD', N .. 'log', whole(revision), name)
  return change, kind % 4 >= 2
end
"""

_TELL_MOVED = """
-- Tell all machines that a namespace moved on from a revision to another: by which node, how many
-- clients are expected then, and the changes in between, six values each as ``changes`` has them;
-- or without them, where they are many.
local function tell_moved(namespace, from, to, node, expected, told)
  local total = 0
  for i = 1, #told do total = total + #told[i] end
  local words = {namespace, whole(from), whole(to), node, expected and whole(expected) or ''}
  if total <= 65536 then
    for i = 1, #told do words[#words + 1] = #told[i] end
  else
    told = {}
  end
  call('PUBLISH', P .. 'moved', table.concat(words, ' ') .. '\\n' .. table.concat(told))
end
"""

COMMIT = _script(
    _BEGIN,
    _CHANGES,
    _WRITE,
    _TELL_MOVED,
    """
-- run, life, namespace, id of this group, revision known, lock, token, batch known, node; then
-- thirteen for each commit: name, id, expected, expected override, at, instance, lease, flags,
-- override, step, opening, instances at most, namespaces at most.
local lost = check_life()
if lost then return lost end
local namespace, group = ARGV[3], ARGV[4]
local N = P .. namespace .. ':'
local done = call('GET', P .. 'done:' .. group)
if done then return {done, '', '', '', '1', {}} end
if ARGV[6] ~= '' then
  local token = call('HGET', P .. 'tokens', ARGV[6])
  if token and tonumber(token) > tonumber(ARGV[7]) then
    return redis.error_reply('FENCE the lock is another\\'s')
  end
end
local meta = call('HMGET', N .. 'meta', 'revision', 'trimmed', 'expected')
local revision = tonumber(meta[1] or ARGV[2])
local trimmed = tonumber(meta[2] or ARGV[2])
local expected = meta[3] and tonumber(meta[3])
local first = revision
local missing, is_far = {}, '0'
local known = tonumber(ARGV[5])
if known < trimmed then
  is_far = '1'
elseif known < revision then
  if changes(N, ARGV[5], whole(revision), missing, 201, 0) > 200 then
    missing, is_far = {}, '1'
  end
end
local size = tonumber(call('HGET', P .. 'sizes', namespace) or 0)
local size_before, expected_before = size, expected
local told_until
local function is_told(deadline)
  if not told_until then
    local time = call('TIME')
    local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
    told_until = now
    local nodes = call('HGETALL', P .. 'nodes')
    for i = 2, #nodes, 2 do
      local told = tonumber(nodes[i])
      if told > now - 5000 and told < told_until then told_until = told end
    end
  end
  return deadline < told_until
end
local function has_room(most, most_namespaces)
  if most_namespaces ~= '' and size == 0 then
    local held = 0
    for _, count in ipairs(call('HVALS', P .. 'sizes')) do
      if tonumber(count) > 0 then held = held + 1 end
    end
    return held < tonumber(most_namespaces)
  end
  return most == '' or size < tonumber(most)
end
local outcomes, evicted, told = {}, {}, {}
for i = 10, #ARGV, 13 do
  local name, id, at, instance = ARGV[i], ARGV[i + 1], ARGV[i + 4], ARGV[i + 5]
  local lease, flags, override = ARGV[i + 6], ARGV[i + 7], ARGV[i + 8]
  local stored = call('HGET', N .. 'record', name)
  local stored_revision = stored and string.match(stored, '^(%d+)') or '0'
  local holds = stored_revision == ARGV[i + 2]
    and (call('HGET', N .. 'override', id) or '') == ARGV[i + 3]
  if holds and string.find(flags, 'd') then
    local found = call('HGET', N .. 'lease', name)
    if found then
      local deadline, batch = string.match(found, '^(%S+) %S+ %S+ %S+ (%S+)')
      holds = tonumber(batch) <= tonumber(ARGV[8]) and is_told(tonumber(deadline))
    else
      holds = false
    end
  end
  if holds and not stored and instance ~= '' then
    holds = has_room(ARGV[i + 11], ARGV[i + 12])
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
        call('HDEL', N .. 'override', id)
      else
        call('HSET', N .. 'override', id, override)
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
      name = name .. '\\0'
      change, of_override = log_change(N, name, revision, at, kind, '')
    elseif removes then
      change, of_override = log_change(N, name, revision, at, kind + 4, instance)
      call('HDEL', N .. 'record', name)
      call('HDEL', N .. 'lease', name)
      if stored then size = size - 1 end
    else
      change, of_override = log_change(N, name, revision, at, kind, '')
      record = number .. ' ' .. instance
      call('HSET', N .. 'record', name, record)
      if lease ~= '' then
        begun = lease .. ' ' .. ARGV[8] .. ' ' .. number
        call('HSET', N .. 'lease', name, begun)
      end
      if not stored then size = size + 1 end
    end
    local n = #told
    told[n + 1], told[n + 2], told[n + 3], told[n + 4] = name, number, change, record
    told[n + 5] = of_override and call('HGET', N .. 'override', id) or ''
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
  call('HSET', N .. 'meta', 'revision', whole(revision))
  if not meta[2] then call('HSET', N .. 'meta', 'trimmed', ARGV[2]) end
  if expected ~= expected_before then call('HSET', N .. 'meta', 'expected', whole(expected)) end
  if size ~= size_before then call('HSET', P .. 'sizes', namespace, whole(size)) end
  local newest
  for second, count in pairs(evicted) do
    call('HINCRBY', N .. 'evicted', second, count)
    newest = math.max(newest or 0, tonumber(second))
  end
  if newest then
    for _, second in ipairs(call('HKEYS', N .. 'evicted')) do
      if tonumber(second) < newest - 60 then call('HDEL', N .. 'evicted', second) end
    end
  end
  call('SET', P .. 'done:' .. group, outcome, 'EX', 60)
  tell_moved(namespace, first, revision, ARGV[9], expected, told)
end
return {outcome, whole(revision), whole(trimmed), expected and whole(expected) or '', is_far,
        missing}
""",
)
"""Write the commits whose guards hold, and tell what its node had not followed before them."""

FETCH = _script(
    _BEGIN,
    _CHANGES,
    """
-- run, life, namespace, revision known, how many at most; and the revision up to which what is
-- listed is known, where all entries are wanted.
local lost = check_life()
if lost then return lost end
local N = P .. ARGV[3] .. ':'
local meta = call('HMGET', N .. 'meta', 'revision', 'trimmed', 'expected')
local revision, trimmed = meta[1] or ARGV[2], meta[2] or ARGV[2]
local found = {}
local is_far = '0'
if ARGV[6] == '' and tonumber(ARGV[4]) < tonumber(trimmed) then
  is_far = '1'
else
  changes(N, ARGV[4], '+inf', found, tonumber(ARGV[5]), tonumber(ARGV[6]) or 0)
end
return {revision, trimmed, meta[3] or '', is_far, found}
""",
)
"""What changed in a namespace after a revision, or that it was forgotten."""

PAGE = _script(
    _BEGIN,
    """
-- run, life, namespace, cursor, how many.
local lost = check_life()
if lost then return lost end
local N = P .. ARGV[3] .. ':'
local page = call('HSCAN', N .. 'record', ARGV[4], 'COUNT', ARGV[5])
local found = {}
for i = 1, #page[2], 2 do
  found[#found + 1] = page[2][i]
  found[#found + 1] = page[2][i + 1]
  found[#found + 1] = call('HGET', N .. 'lease', page[2][i]) or ''
end
return {page[1], found}
""",
)
"""A part of what is listed, with its leases."""

TELL = _script(
    _BEGIN,
    """
-- run, life, node, told until, batch known, a batch (empty: nothing to tell).
local lost = check_life()
if lost then return lost end
local batch = ARGV[6]
call('HSET', P .. 'nodes', ARGV[3], ARGV[4])
local told = tonumber(call('GET', P .. 'told') or 0)
if batch ~= '' then
  told = told + 1
  call('SET', P .. 'told', whole(told))
  call('XADD', P .. 'renewed', 'MAXLEN', 256, whole(told) .. '-1', 'batch', batch)
  for _, each in ipairs(cjson.decode(batch).leases) do
    local key = P .. each[1] .. ':lease'
    local stored = call('HGET', key, each[2])
    if stored then
      local deadline, duration, last, client, _, began =
        string.match(stored, '^(%S+) (%S+) (%S+) (%S+) (%S+) (%S+)')
      if tonumber(duration) == each[4] and each[3] > tonumber(deadline) + 20 then
        if each[6] ~= 0 then client = whole(each[6]) end
        call('HSET', key, each[2], whole(each[3]) .. ' ' .. duration .. ' ' .. whole(each[5])
             .. ' ' .. client .. ' ' .. whole(told) .. ' ' .. began)
      end
    end
  end
end
local known = tonumber(ARGV[5])
local batches, is_far = {}, '0'
if known > told then
  is_far = '1'
elseif known < told then
  local entries = call('XRANGE', P .. 'renewed', whole(known + 1) .. '-0', '+')
  if #entries ~= told - known then is_far = '1' end
  for _, entry in ipairs(entries) do batches[#batches + 1] = entry[2][2] end
end
local standing = {}
for _, namespace in ipairs(call('HKEYS', P .. 'sizes')) do
  local meta = call('HMGET', P .. namespace .. ':meta', 'revision', 'trimmed', 'expected')
  standing[#standing + 1] = namespace
  standing[#standing + 1] = meta[1] or ARGV[2]
  standing[#standing + 1] = meta[2] or ARGV[2]
  standing[#standing + 1] = meta[3] or ''
end
local time = call('TIME')
local now = tonumber(time[1]) * 1000
local nodes = call('HGETALL', P .. 'nodes')
for i = 2, #nodes, 2 do
  if tonumber(nodes[i]) < now - 60000 then call('HDEL', P .. 'nodes', nodes[i - 1]) end
end
return {whole(told), is_far, batches, standing}
""",
)
"""Tell others of a node's renewals, and hear of theirs and of how far each namespace is."""

TRIM = _script(
    _BEGIN,
    """
-- run, life, namespace, up to this revision, how many at most.
local lost = check_life()
if lost then return lost end
local N = P .. ARGV[3] .. ':'
local meta = call('HMGET', N .. 'meta', 'revision', 'trimmed')
if not meta[1] or tonumber(ARGV[4]) > tonumber(meta[1]) then return 0 end
local names = call('ZRANGEBYSCORE', N .. 'log', '-inf', ARGV[4], 'WITHSCORES',
                   'LIMIT', 0, tonumber(ARGV[5]))
for i = 1, #names, 2 do
  call('ZREM', N .. 'log', names[i])
  call('HDEL', N .. 'change', names[i])
  call('HDEL', N .. 'was', names[i])
end
local last = #names > 0 and tonumber(names[#names]) or 0
if #names / 2 < tonumber(ARGV[5]) then last = tonumber(ARGV[4]) end
if last > tonumber(meta[2] or ARGV[2]) then call('HSET', N .. 'meta', 'trimmed', whole(last)) end
return #names / 2
""",
)
"""Forget the oldest changes."""

LIFE = _script(
    _BEGIN,
    _TELL_MOVED,
    """
-- run, the life in which the caller is ready to have it begin, the life and run that it saw.
local life = call('HMGET', P .. 'life', 'number', 'run')
if ARGV[2] == '' or (life[1] or '') ~= ARGV[3] or (life[2] or '') ~= ARGV[4] then
  local known = tonumber(life[1] or 0)
  for _, namespace in ipairs(call('HKEYS', P .. 'sizes')) do
    local revision = call('HGET', P .. namespace .. ':meta', 'revision')
    if revision and tonumber(revision) > known then known = tonumber(revision) end
  end
  return {life[1] or '', life[2] or '', whole(known), ARGV[1]}
end
call('HSET', P .. 'life', 'number', ARGV[2], 'run', ARGV[1])
call('DEL', P .. 'locks')
for _, namespace in ipairs(call('HKEYS', P .. 'sizes')) do
  local N = P .. namespace .. ':'
  call('HSET', N .. 'meta', 'revision', ARGV[2], 'trimmed', ARGV[2])
  local time = call('TIME')
  local at = whole(tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
  local records = call('HGETALL', N .. 'record')
  for i = 1, #records, 2 do
    if not call('ZSCORE', N .. 'log', records[i]) then
      call('ZADD', N .. 'log', string.match(records[i + 1], '^(%d+)'), records[i])
    end
    call('HSET', N .. 'change', records[i], at .. ' 0 ')
  end
  tell_moved(namespace, 0, tonumber(ARGV[2]), '', nil, {})
end
return {ARGV[2], ARGV[1], ARGV[2], ARGV[1]}
""",
)
"""Which life it is; another one begins where it is still the one that the caller saw."""

_NEWS = """
-- Whether a state that had a revision in another life is later than what is known here.
local function is_news(N, name, offered, removed)
  local stored = call('HGET', N .. 'record', name)
  local known = stored and tonumber(string.match(stored, '^(%d+)'))
    or tonumber(call('ZSCORE', N .. 'log', name) or 0)
  local was = call('HGET', N .. 'was', name)
  if was then
    local now, before = string.match(was, '^(%d+) (%d+)')
    if tonumber(now) == known then known = tonumber(before) end
  end
  return offered > known and (stored or removed ~= '1' or known == 0), stored
end
"""

WANT = _script(
    _BEGIN,
    _NEWS,
    """
-- run, life, namespace; then three for each: name, revision that it had, removed ('1') or not.
local lost = check_life()
if lost then return lost end
local N = P .. ARGV[3] .. ':'
local wanted = {}
for i = 4, #ARGV, 3 do
  if is_news(N, ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2]) then
    wanted[#wanted + 1] = (i - 4) / 3
  end
end
return wanted
""",
)
"""Which of the states that a node has of an earlier life are news here, by their places."""

OFFER = _script(
    _BEGIN,
    _WRITE,
    _TELL_MOVED,
    _NEWS,
    """
-- run, life, namespace, node, expected clients; then six for each: name, revision that it had,
-- instance, removed ('1') or not, lease, override.
local lost = check_life()
if lost then return lost end
local namespace = ARGV[3]
local N = P .. namespace .. ':'
local revision = tonumber(call('HGET', N .. 'meta', 'revision') or ARGV[2])
local size = tonumber(call('HGET', P .. 'sizes', namespace) or 0)
local first = revision
local time = call('TIME')
local at = whole(tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
for i = 6, #ARGV, 6 do
  local name = ARGV[i]
  local news, stored = is_news(N, name, tonumber(ARGV[i + 1]), ARGV[i + 3])
  if news then
    revision = revision + 1
    local number = whole(revision)
    call('HSET', N .. 'was', name, number .. ' ' .. ARGV[i + 1])
    local id = string.match(name, '^[^%z]*%z([^%z]*)')
    if ARGV[i + 3] == '1' then
      log_change(N, name, revision, at, 4 + 2 * call('HDEL', N .. 'override', id), ARGV[i + 2])
      call('HDEL', N .. 'record', name)
      call('HDEL', N .. 'lease', name)
      if stored then size = size - 1 end
    else
      local kind = 0
      if ARGV[i + 5] ~= '' then
        kind = 2
        call('HSET', N .. 'override', id, ARGV[i + 5])
      elseif call('HDEL', N .. 'override', id) == 1 then
        kind = 2
      end
      log_change(N, name, revision, at, kind, '')
      call('HSET', N .. 'record', name, number .. ' ' .. ARGV[i + 2])
      if ARGV[i + 4] ~= '' then
        call('HSET', N .. 'lease', name, ARGV[i + 4] .. ' 0 ' .. number)
      end
      if not stored then size = size + 1 end
    end
  end
end
call('HSET', N .. 'meta', 'revision', whole(revision))
call('HSETNX', N .. 'meta', 'trimmed', ARGV[2])
if ARGV[5] ~= '' then call('HSETNX', N .. 'meta', 'expected', ARGV[5]) end
call('HSET', P .. 'sizes', namespace, whole(size))
tell_moved(namespace, first, revision, ARGV[4], nil, {})
return whole(revision - first)
""",
)
"""Give back what a node knows of an earlier life: of each instance the later word counts."""

ACQUIRE = _script(
    _BEGIN,
    """
-- run, life, lock, owner, now, how long.
local lost = check_life()
if lost then return lost end
local stored = call('HGET', P .. 'locks', ARGV[3])
local now, length = tonumber(ARGV[5]), tonumber(ARGV[6])
local owner, ends, lasts
if stored then
  ends, lasts, owner = string.match(stored, '^(%S+) (%S+) (.*)$')
  -- A clock that was set back must not keep a dead owner's lock for longer than it was taken for.
  if owner ~= ARGV[4] and tonumber(ends) > now then
    if tonumber(ends) > now + tonumber(lasts) + 1000 then
      call('HSET', P .. 'locks', ARGV[3], whole(now + tonumber(lasts)) .. ' ' .. lasts .. ' '
           .. owner)
    end
    return ''
  end
end
call('HSET', P .. 'locks', ARGV[3], whole(now + length) .. ' ' .. ARGV[6] .. ' ' .. ARGV[4])
local token = tonumber(call('HGET', P .. 'tokens', ARGV[3]) or ARGV[2])
if owner ~= ARGV[4] then
  token = math.max(token, tonumber(ARGV[2])) + 1
  call('HSET', P .. 'tokens', ARGV[3], whole(token))
end
return whole(token)
""",
)
"""Take or keep a lock; its token, or nothing. Tokens grow with the lives too."""

RELEASE = _script(
    _BEGIN,
    """
local lost = check_life()
if lost then return lost end
local stored = call('HGET', P .. 'locks', ARGV[3])
if stored and string.match(stored, '^%S+ %S+ (.*)$') == ARGV[4] then
  call('HDEL', P .. 'locks', ARGV[3])
end
return 1
""",
)
"""Give a lock back, if it is this owner's."""
