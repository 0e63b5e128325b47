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
-- An error where the part is not in the life that the caller names, or is a namespace that is not
-- open. One that is to be opened may be closed, if its begin is the one that is given ('': any).
local function check_life(begin)
  local life = call('HMGET', P .. 'life', 'number', 'run', 'begin', 'open')
  if not life[1] and namespace ~= '' then
    return redis.error_reply('OPEN the namespace is not open')
  end
  if life[1] ~= ARGV[2] or life[2] ~= ARGV[1] or (begin or '') ~= '' and begin ~= life[3] then
    return redis.error_reply('LIFE is another')
  end
  if namespace ~= '' and not begin and not life[4] then
    return redis.error_reply('OPEN the namespace is not open')
  end
  return nil
end
