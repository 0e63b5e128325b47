-- run, life.
local lost = check_life()
if lost then return lost end
local meta = call('HMGET', P .. 'meta', 'size', 'claim')
if tonumber(meta[1] or 0) > 0 or not meta[2] then return '' end
local claim = math.abs(tonumber(meta[2]))
call('HSET', P .. 'meta', 'claim', whole(-claim))
return whole(claim)
