"""What Redis runs: each script is one atomic operation on the keys of one part of a registry.

A part is the *root*, or a namespace. All keys of a part begin with its tag in braces, so that they
are in one slot of a Cluster, and the namespaces are spread over its servers. Every script has two
keys: the tag, which is never a key itself, and the part's ``life``. While a slot is being moved one
of the two is missing wherever it is asked for, so that a Cluster refuses (``TRYAGAIN``) until it is
moved as a whole.

| key of the root, ``{PREFIX}:`` | kind | content |
| --- | --- | --- |
| ``life`` | hash | ``number``; ``run``: the server's run in which it began, and the format |
| ``namespaces`` | hash | namespace → the life in which it was last begun; empty before |
| ``claims`` | hash | namespace → the number of its claim: of those that may hold instances |
| ``claimed`` | string | the last number of a claim |
| ``tokens``, ``locks`` | hashes | lock → the last token; its owner, end and length |
| ``notes`` | hash | name → what was noted |
| ``nodes`` | hash | node → the instant up to which it told its renewals |
| ``far`` | hash | namespace → its revision and its last batch of renewals, as nodes told |
| ``news`` | sorted set | namespace, by the number of the last news of it in ``far`` |
| ``newest`` | string | the number of the last news |
| ``awaited`` | hash | the nodes that have not taken up the life; for a few seconds |

| key of a namespace, ``{PREFIX:NAMESPACE}:`` | kind | content |
| --- | --- | --- |
| ``life`` | hash | as of the root: which of its lives this part is in, and the run of its server |
| ``meta`` | hash | ``revision``, ``trimmed``, ``expected``, ``size``, ``claim``; ``taken`` |
| ``record`` | hash | instance → revision, a blank, the instance |
| ``lease`` | hash | instance → a lease (below) |
| ``override`` | hash | id → status |
| ``log`` | sorted set | instance, by the revision of its last change |
| ``change`` | hash | instance → instant, kind, and a removed instance's last state |
| ``was`` | hash | instance → its revision now, that which it was given back with; written when |
| ``evicted`` | hash | second → how many were evicted in it |
| ``fences`` | hash | lock → the greatest token that was told of |
| ``renewed`` | stream | the latest batches of renewals, by their numbers |
| ``told`` | string | the number of the last batch |
| ``done:ID`` | string | the outcome of a group of commits, for a minute |
| ``awaited`` | hash | as of the root: nothing is committed before they have given back |

**Opening.** A namespace is listed at the root before it is begun in its own slot, and begun there
before it holds anything. So where the root says that it was begun in the present life, and its slot
says otherwise, that slot has lost something. A *claim* allows it to hold instances: the root counts
claims, and a namespace that is found empty gives its claim back when room is wanted.

An instance's name is its application and id, joined by NUL; an override that changed alone has the
name of its instance and another NUL. A lease is its deadline, duration, last renewal, the client's
own last renewal, the number of the batch that last renewed it, and the revision with which it
began. Instants are Redis' time in milliseconds. Lua's numbers are
doubles: they hold each revision exactly, but are to be written in full.

All of this, and the messages, have a *format*, which is a number. It stands behind the run, so
that what another version with another format asks is refused, as in another run.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from registry.model import Instance

FORMAT = 1
"""To be another one wherever a key, a value or a message gets another meaning."""


class Script(NamedTuple):
    """A script, and the name by which Redis knows it once it was loaded."""

    text: str
    sha: str


def _script(*parts: str) -> Script:
    text = "".join(parts)
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


AHEAD_MS = 5_000
"""By how much a lease may seem to end later than its whole duration from now."""

_BEGIN = """
local P = KEYS[1] .. ':'
local prefix, namespace = string.match(KEYS[1], '^{([^:}]*):?(.*)}$')
local call = redis.call
local function whole(number) return string.format('%.0f', number) end
-- What a key has as a number; where it is none, an error that names the key.
local function number(key, text)
  return tonumber(text) or error('NONSENSE ' .. P .. key .. ' ', 0)
end
local function now()
  local time = call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
-- No lease ends later than its whole duration from now. One that seems to was written before the
-- server's clock was set back, which must not keep the dead for as long.
local function is_beyond(deadline, duration)
  return tonumber(deadline) > now() + tonumber(duration) + AHEAD
end
local function check_life()
  local life = call('HMGET', P .. 'life', 'number', 'run')
  if not life[1] and namespace ~= '' then
    return redis.error_reply('OPEN the namespace is not open')
  end
  if life[1] ~= ARGV[2] or life[2] ~= ARGV[1] then
    return redis.error_reply('LIFE is another')
  end
  return nil
end
""".replace("AHEAD", str(AHEAD_MS))

_CHANGES = """
-- An entry of the log, six values. What is listed since the revision ``known`` or before goes
-- without its record and its lease.
local function change_of(name, revision, into, known)
  local change = call('HGET', P .. 'change', name) or '0 0 '
  local kind = number('change', string.match(change, '^%S+ (%d+)'))
  local record, override, lease = '', '', ''
  if kind % 4 >= 2 then
    override = call('HGET', P .. 'override', string.match(name, '^[^%z]*%z([^%z]*)')) or ''
  end
  if kind < 4 and string.sub(name, -1) ~= '\\0' and tonumber(revision) > known then
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
"""

_WRITE = """
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
"""

_AWAIT = """
-- Await the nodes that have not given back for as long again.
local function await() call('EXPIRE', P .. 'awaited', 5) end
"""

_TELL_MOVED = """
-- Tell all machines that a namespace moved on from a revision to another: by which node, how many
-- clients are expected then, and the changes in between, six values each as ``changes`` has them;
-- or without them, where they are many.
local function tell_moved(from, to, node, expected, told)
  local total = 0
  for i = 1, #told do total = total + #told[i] end
  local words = {namespace, whole(from), whole(to), node, expected and whole(expected) or ''}
  if total <= 65536 then
    for i = 1, #told do words[#words + 1] = #told[i] end
  else
    told = {}
  end
  call('PUBLISH', '{' .. prefix .. '}:moved',
       table.concat(words, ' ') .. '\\n' .. table.concat(told))
end
"""

COMMIT = _script(
    _BEGIN,
    _CHANGES,
    _WRITE,
    _TELL_MOVED,
    """
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
    return redis.error_reply('FENCE the lock is another\\'s')
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
      name = name .. '\\0'
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
""",
)
"""Write the commits whose guards hold, and tell what its node had not followed before them.

Refused as long as another node is awaited, which may know of a later state than all others.
"""

FETCH = _script(
    _BEGIN,
    _CHANGES,
    """
-- run, life, revision known, how many at most; and the revision up to which what is listed is
-- known, where all entries are wanted.
local lost = check_life()
if lost then return lost end
local meta = call('HMGET', P .. 'meta', 'revision', 'trimmed', 'expected')
local revision, trimmed = meta[1] or ARGV[2], meta[2] or ARGV[2]
for _, each in ipairs({revision, trimmed, meta[3] or 0}) do number('meta', each) end
local found = {}
local is_far = '0'
if ARGV[5] == '' and tonumber(ARGV[3]) < tonumber(trimmed) then
  is_far = '1'
else
  changes(ARGV[3], '+inf', found, tonumber(ARGV[4]), tonumber(ARGV[5]) or 0)
end
return {revision, trimmed, meta[3] or '', is_far, found}
""",
)
"""What changed in a namespace after a revision, or that it was forgotten."""

PAGE = _script(
    _BEGIN,
    """
-- run, life, cursor, how many.
local lost = check_life()
if lost then return lost end
local page = call('HSCAN', P .. 'record', ARGV[3], 'COUNT', ARGV[4])
local found = {}
for i = 1, #page[2], 2 do
  found[#found + 1] = page[2][i]
  found[#found + 1] = page[2][i + 1]
  found[#found + 1] = call('HGET', P .. 'lease', page[2][i]) or ''
end
return {page[1], found}
""",
)
"""A part of what is listed, with its leases."""

TELL = _script(
    _BEGIN,
    """
-- run, life, batch known, a batch (empty: nothing to tell).
local lost = check_life()
if lost then return lost end
local batch = ARGV[4]
local told = number('told', call('GET', P .. 'told') or 0)
if batch ~= '' then
  told = told + 1
  call('SET', P .. 'told', whole(told))
  call('XADD', P .. 'renewed', 'MAXLEN', 256, whole(told) .. '-1', 'batch', batch)
  call('EXPIRE', P .. 'renewed', 60)
  for _, each in ipairs(cjson.decode(batch).leases) do
    local stored = call('HGET', P .. 'lease', each[1])
    if stored then
      local deadline, duration, last, client, _, began =
        string.match(stored, '^(%S+) (%S+) (%S+) (%S+) (%S+) (%S+)')
      if tonumber(duration) == each[3]
         and (each[2] > tonumber(deadline) + 20 or is_beyond(deadline, duration)) then
        if each[5] ~= 0 then client = whole(each[5]) end
        call('HSET', P .. 'lease', each[1], whole(each[2]) .. ' ' .. duration .. ' '
             .. whole(each[4]) .. ' ' .. client .. ' ' .. whole(told) .. ' ' .. began)
      end
    end
  end
end
local known = tonumber(ARGV[3])
local batches, is_far = {}, '0'
if known > told then
  is_far = '1'
elseif known < told then
  local entries = call('XRANGE', P .. 'renewed', whole(known + 1) .. '-0', '+')
  if #entries ~= told - known then is_far = '1' end
  for _, entry in ipairs(entries) do batches[#batches + 1] = entry[2][2] end
end
local meta = call('HMGET', P .. 'meta', 'revision', 'trimmed', 'expected')
for i = 1, 3 do number('meta', meta[i] or 0) end
return {whole(told), is_far, batches, meta[1] or ARGV[2], meta[2] or ARGV[2], meta[3] or ''}
""",
)
"""Tell others of a node's renewals in a namespace, and hear of theirs and of how far it is."""

TOLD = _script(
    _BEGIN,
    """
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
""",
)
"""Note until when a node told its renewals, and how far the namespaces are.

Until when all told; the nodes that did in the last five seconds; the number of the last news, and
the namespaces of which there are any that the node does not know, with how far each is.
"""

TRIM = _script(
    _BEGIN,
    """
-- run, life, up to this revision, how many at most.
local lost = check_life()
if lost then return lost end
local meta = call('HMGET', P .. 'meta', 'revision', 'trimmed')
if not meta[1] or tonumber(ARGV[3]) > tonumber(meta[1]) then return 0 end
local names = call('ZRANGEBYSCORE', P .. 'log', '-inf', ARGV[3], 'WITHSCORES',
                   'LIMIT', 0, tonumber(ARGV[4]))
for i = 1, #names, 2 do
  call('ZREM', P .. 'log', names[i])
  call('HDEL', P .. 'change', names[i])
  call('HDEL', P .. 'was', names[i])
end
local last = #names > 0 and tonumber(names[#names]) or 0
if #names / 2 < tonumber(ARGV[4]) then last = tonumber(ARGV[3]) end
if last > tonumber(meta[2] or ARGV[2]) then call('HSET', P .. 'meta', 'trimmed', whole(last)) end
return #names / 2
""",
)
"""Forget the oldest changes."""

LIFE = _script(
    _BEGIN,
    _AWAIT,
    _TELL_MOVED,
    """
-- run, the life to begin (empty: only look); the life, its run and the server's run as the caller
-- saw them; now; '1' where nodes may have taken up the life already; the nodes to be awaited.
local life = call('HMGET', P .. 'life', 'number', 'run')
local meta = call('HMGET', P .. 'meta', 'revision', 'size')
if ARGV[2] == '' or (life[1] or '') ~= ARGV[3] or (life[2] or '') ~= ARGV[4]
   or ARGV[5] ~= ARGV[1] then
  return {life[1] or '', life[2] or '', ARGV[1], meta[1] or '0', meta[2] or '0'}
end
call('HSET', P .. 'life', 'number', ARGV[2], 'run', ARGV[1])
call('DEL', P .. 'awaited')
for i = 8, #ARGV do call('HSET', P .. 'awaited', ARGV[i], '') end
await()
if namespace == '' then
  call('DEL', P .. 'locks', P .. 'claims', P .. 'far', P .. 'news', P .. 'newest')
else
  call('HDEL', P .. 'meta', 'claim', 'counted')
  call('HSET', P .. 'meta', 'revision', ARGV[2], 'trimmed', ARGV[2],
       'taken', ARGV[7] == '1' and ARGV[2] or '')
  local records = call('HGETALL', P .. 'record')
  for i = 1, #records, 2 do
    if not call('ZSCORE', P .. 'log', records[i]) then
      call('ZADD', P .. 'log', string.match(records[i + 1], '^(%d+)'), records[i])
    end
    call('HSET', P .. 'change', records[i], ARGV[6] .. ' 0 ')
  end
  if life[1] then tell_moved(0, tonumber(ARGV[2]), '', nil, {}) end
end
return {ARGV[2], ARGV[1], ARGV[1], ARGV[2], meta[2] or '0'}
""",
)
"""Which life a part is in, its run and the server's, its revision and size; and begin another.

It begins where all is still as the caller saw it. What is listed counts as changed in it. Locks and
claims begin anew.
"""

OPEN = _script(
    _BEGIN,
    """
-- run, life, namespace, '1' where it is to hold instances, how many may ('': any number).
local lost = check_life()
if lost then return lost end
local begun, claim = call('HGET', P .. 'namespaces', ARGV[3]), ''
if ARGV[4] ~= '' then
  if ARGV[5] ~= '' and not call('HGET', P .. 'claims', ARGV[3])
     and call('HLEN', P .. 'claims') >= tonumber(ARGV[5]) then
    return {begun or '', '', call('HKEYS', P .. 'claims'), {}}
  end
  claim = whole(math.max(tonumber(call('GET', P .. 'claimed') or 0), tonumber(ARGV[2])) + 1)
  call('SET', P .. 'claimed', claim)
  call('HSET', P .. 'claims', ARGV[3], claim)
end
if not begun then call('HSET', P .. 'namespaces', ARGV[3], '') end
return {begun or '', claim, call('HGETALL', P .. 'tokens'), call('HKEYS', P .. 'awaited')}
""",
)
"""List a namespace, and claim; in which life it was begun, its claim, and the locks' tokens.

Last come the nodes that are awaited yet.

Where there is no room for another it has no claim, and those that have one are named.
"""

OPENED = _script(
    _BEGIN,
    """
-- run, life, claim or nothing; then each lock and its token.
local lost = check_life()
if lost then return lost end
if ARGV[3] ~= '' then call('HSET', P .. 'meta', 'claim', ARGV[3]) end
for i = 4, #ARGV, 2 do
  local known = call('HGET', P .. 'fences', ARGV[i])
  if not known or tonumber(known) < tonumber(ARGV[i + 1]) then
    call('HSET', P .. 'fences', ARGV[i], ARGV[i + 1])
  end
end
return 1
""",
)
"""Tell a namespace of its claim, and of tokens: what is fenced with an earlier one is refused."""

BEGUN = _script(
    _BEGIN,
    """
-- run, life, namespace.
local lost = check_life()
if lost then return lost end
call('HSET', P .. 'namespaces', ARGV[3], ARGV[2])
return 1
""",
)
"""Note that a namespace was begun in the present life."""

YIELD = _script(
    _BEGIN,
    """
-- run, life.
local lost = check_life()
if lost then return lost end
local meta = call('HMGET', P .. 'meta', 'size', 'claim')
if tonumber(meta[1] or 0) > 0 or not meta[2] then return '' end
local claim = math.abs(tonumber(meta[2]))
call('HSET', P .. 'meta', 'claim', whole(-claim))
return whole(claim)
""",
)
"""Take the claim from a namespace that is empty, and return it."""

YIELDED = _script(
    _BEGIN,
    """
-- run, life, namespace, the claim that was taken from it.
local lost = check_life()
if lost then return lost end
if call('HGET', P .. 'claims', ARGV[3]) == ARGV[4] then call('HDEL', P .. 'claims', ARGV[3]) end
return 1
""",
)
"""Note that a claim was taken, unless there is a later one by now."""

_PACKED = """
-- Many values as one, and back: their lengths, then the values.
local function packed(values)
  local lengths = {}
  for i = 1, #values do lengths[i] = #values[i] end
  return table.concat(lengths, ' ') .. '\\n' .. table.concat(values)
end
local function unpacked(text)
  local values = {}
  local start = string.find(text, '\\n', 1, true)
  local at = start + 1
  for word in string.gmatch(string.sub(text, 1, start - 1), '%d+') do
    local length = tonumber(word)
    values[#values + 1] = string.sub(text, at, at + length - 1)
    at = at + length
  end
  return values
end
"""

LISTING = _script(
    _BEGIN,
    _AWAIT,
    _PACKED,
    """
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
""",
)
"""Which states are in the log of a namespace, by their revisions.

From each: its revision, and where it was given back under another, that. All are empty while
another node gives back, which is then to be waited for; else the asking node is the one.
"""

NAMED = _script(
    _BEGIN,
    _PACKED,
    _CHANGES,
    """
-- run, life, names.
local lost = check_life()
if lost then return lost end
local found = {}
for _, name in ipairs(unpacked(ARGV[3])) do
  local revision = call('ZSCORE', P .. 'log', name)
  if revision then change_of(name, revision, found, 0) end
end
return found
""",
)
"""The entries of the log under some names, six values each."""

OFFER = _script(
    _BEGIN,
    _AWAIT,
    _PACKED,
    _WRITE,
    _TELL_MOVED,
    """
-- run, life, now, node, expected clients; then, as one, eight for each: name, revision that
-- it had (0: unknown), its state, whether it is removed ('r') or an override alone ('o'), lease,
-- override; and where it was written while Redis was away, when, and after which revision.
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
-- Whether a state that was written while Redis was away is later than what others wrote meanwhile:
-- by the instance's own timestamp, and among equal ones by when each was written.
local function is_later(name, stored, was_at, state, written)
  local change = call('HGET', P .. 'change', name)
  local other_at, _, last_state = string.match(change or '0 0 ', '^(%S+) (%S+) (.*)$')
  local theirs = dirty_of(stored and string.match(stored, '^%d+ (.*)$') or last_state)
  local mine = dirty_of(state)
  if mine ~= theirs then return mine > theirs end
  return tonumber(written) > tonumber(was_at or other_at)
end
local items = unpacked(ARGV[6])
for i = 1, #items, 8 do
  local name, offered, state, kind = items[i], tonumber(items[i + 1]), items[i + 2], items[i + 3]
  local lease, override, written = items[i + 4], items[i + 5], items[i + 6]
  local id = string.match(name, '^[^%z]*%z([^%z]*)')
  local stored = call('HGET', P .. 'record', name)
  local known = stored and tonumber(string.match(stored, '^(%d+)'))
    or tonumber(call('ZSCORE', P .. 'log', name) or 0)
  local was, was_at = call('HGET', P .. 'was', name), nil
  local earlier = known
  if was then
    local then_, before, when = string.match(was, '^(%d+) (%d+) ?(%d*)')
    if tonumber(then_) == known then
      earlier = tonumber(before)
      if when ~= '' then was_at = when end
    end
  end
  local has_override = call('HGET', P .. 'override', id)
  local is_news
  if kind == 'o' and offered == 0 then
    is_news = known == 0 and not has_override
  elseif written ~= '' and earlier > tonumber(items[i + 7]) and earlier ~= offered then
    is_news = is_later(name, stored, was_at, state, written)
  else
    is_news = offered > earlier and (stored or kind ~= 'r' or known == 0)
  end
  if is_news then
    given = given + 1
    local number = items[i + 1]
    if is_taken or kind == 'o' or offered >= life then
      revision = revision + 1
      number = whole(revision)
    end
    if number ~= items[i + 1] or written ~= '' then
      call('HSET', P .. 'was', name, number .. ' ' .. items[i + 1] .. ' ' .. written)
    end
    local bits = 0
    if override ~= '' then
      bits = 2
      call('HSET', P .. 'override', id, override)
    elseif has_override then
      bits = 2
      call('HDEL', P .. 'override', id)
    end
    if written ~= '' and kind == 'r' and call('HEXISTS', P .. 'lease', name) == 1 then
      step = step - 1
    elseif written ~= '' and kind == '' and not stored and lease ~= '' then
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
      log_change(name, number, at, bits, '')
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
""".replace("DIRTY", str(1 + Instance._fields.index("last_dirty_ms"))),
)
"""Give back what a node knows of an earlier life, or wrote while Redis was away.

As long as no node has taken up the life, a state keeps its revision, so that who has it already has
nothing to do.
"""

GIVEN = _script(
    _BEGIN,
    """
-- run, life, node.
local lost = check_life()
if lost then return lost end
call('HDEL', P .. 'awaited', ARGV[3])
if namespace ~= '' and call('HGET', P .. 'meta', 'counted') == ARGV[3] then
  call('HDEL', P .. 'meta', 'counted')
end
return 1
""",
)
"""Note that a node has taken up the life, and gave back before whatever the others may lack."""

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
