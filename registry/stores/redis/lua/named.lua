-- run, life, names.
local lost = check_life()
if lost then return lost end
local found = {}
for _, name in ipairs(unpacked(ARGV[3])) do
  local revision = call('ZSCORE', P .. 'log', name)
  if revision then change_of(name, revision, found, 0) end
end
return found
