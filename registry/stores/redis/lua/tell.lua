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
