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
