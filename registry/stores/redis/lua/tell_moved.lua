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
       table.concat(words, ' ') .. '\n' .. table.concat(told))
end
