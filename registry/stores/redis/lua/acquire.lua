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
