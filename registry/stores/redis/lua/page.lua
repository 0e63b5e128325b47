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
